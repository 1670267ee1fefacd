"""Units of a planned graph as calls that keep only what they read, and run again in backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from contextvars import ContextVar, Token

import torch
from torch import fx, nn
from torch.func import functional_call
from torch.fx.node import Argument, Target
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from utcompile.errors import UtcError
from utcompile.graph import function_of, info, module_operation
from utcompile.memory.functions import bit_relu
from utcompile.memory.one_call import as_it_is
from utcompile.memory.parameters import ReadParameters

_IS_AGAIN: ContextVar[bool] = ContextVar("is_again", default=False)


def recompute(graph: fx.Graph, root: nn.Module, units: Iterable[tuple[str, str]]) -> None:
    """Let units of a planned graph run again in backward; the graph is changed in place.

    Args:
        graph: a planned graph.
        root: the module that it is of.
        units: the names of the first and the last node of each, in order.
    """
    for number, (first, last) in enumerate(units):
        _Segment(graph, root, nodes_of_unit(graph, first, last)).replace(number)


def nodes_of_unit(graph: fx.Graph, first: str, last: str) -> list[fx.Node]:
    """The nodes from one name to another.

    Raises:
        UtcError: the graph has them not, or not in this order: it was changed since it was planned.
    """
    nodes = list(graph.nodes)
    places = {n.name: i for i, n in enumerate(nodes)}
    start, end = places.get(first, len(nodes)), places.get(last, -1)
    if start > end:
        raise UtcError(
            "the memory plan is that of another graph",
            why=f"this one has no nodes from {first} to {last}; it was changed after it was planned",
            fix="plan it again: tuned.plan_memory(budget)",
            code="memory/inputs",
        )
    return nodes[start : end + 1]


class _Segment:
    def __init__(self, graph: fx.Graph, root: nn.Module, nodes: list[fx.Node]) -> None:
        self.graph, self.root = graph, root
        self.nodes = [n for n in nodes if not info(n).check]
        inside = set(self.nodes)
        self.outputs = [n for n in self.nodes if any(u not in inside for u in n.users) and n.op != "get_attr"]
        self.inner = fx.Graph()
        self.inputs: list[fx.Node] = []
        self.copies: dict[fx.Node, fx.Node] = {}

    def replace(self, number: int) -> None:
        """Put one call in the place of the nodes."""
        last = self.nodes[-1]
        for node in self.nodes:
            self._copy(node)
        self.inner.output(tuple(self.copies[n] for n in self.outputs))
        run = _again(fx.GraphModule(nn.Module(), self.inner), number)
        with self.graph.inserting_after(last):
            call = self.graph.call_function(run, tuple(self.inputs))
        spot = call
        for i, node in enumerate(self.outputs):
            with self.graph.inserting_after(spot):
                spot = self.graph.call_function(_part, (call, i))
            spot.meta = node.meta
            node.replace_all_uses_with(spot, delete_user_cb=lambda u: u not in self.copies)
        for node in reversed(self.nodes):
            if not node.users:
                self.graph.erase_node(node)

    def _copy(self, node: fx.Node) -> None:
        """A node inside: parameters and modules are what it is given, and nothing is written in place."""
        if node.op == "get_attr":
            self._given(node)
            return
        with self.graph.inserting_before(self.nodes[0]):
            how, target, args, kwargs = _plain(node, self.root)
            if how == "call_module":
                module = self.graph.get_attr(str(target))
                how, target, args = "call_function", _call_module, (module, *args)
        self._put(node, how, target, args, kwargs)

    def _put(
        self, node: fx.Node, how: str, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Argument]
    ) -> None:
        given = fx.node.map_arg((args, kwargs), self._inside)
        self.copies[node] = self.inner.create_node(how, target, *given, name=node.name)

    def _inside(self, node: fx.Node) -> fx.Node:
        return self.copies[node] if node in self.copies else self._given(node)

    def _given(self, node: fx.Node) -> fx.Node:
        self.inputs.append(node)
        self.copies[node] = self.inner.placeholder(f"given_{len(self.inputs)}")
        return self.copies[node]


def out_of_place(node: fx.Node, root: nn.Module) -> None:
    """Let a node that writes in place do the same without writing."""
    node.op, node.target, node.args, node.kwargs = _plain(node, root)


def _plain(node: fx.Node, root: nn.Module) -> tuple[str, Target, tuple[Argument, ...], dict[str, Argument]]:
    """A node's call without a write in place."""
    how, target, args, kwargs = node.op, node.target, node.args, dict(node.kwargs)
    written = info(node).inplace
    if target is bit_relu:
        return how, target, (args[0], False), kwargs
    if written is None or target is as_it_is:
        return how, target, args, kwargs
    if how == "call_module":
        name, attributes = module_operation(root.get_submodule(str(target)))
        return "call_function", function_of(name), args, attributes
    if written.plain is not None:
        return *written.plain, args, kwargs
    return how, target, args, {**kwargs, "inplace": False} if "inplace" in kwargs else kwargs


def _call_module(module: nn.Module, *args: object, **kwargs: object) -> object:
    if not torch.compiler.is_compiling() and _IS_AGAIN.get() and any(map(gathers, module.modules())):
        own = {name: buffer.clone() for name, buffer in module.named_buffers()}
        return functional_call(module, own, args, kwargs)
    return module(*args, **kwargs)


def gathers(layer: nn.Module) -> bool:
    """Whether a call of a layer counts its input among the statistics of the layer: once per step, not once more."""
    return isinstance(layer, _NormBase) and layer.training and layer.track_running_stats


class _OnceMore:
    """The context in which a unit runs again. A second backward enters it again.

    Args:
        parameters: what the unit read the first time.
    """

    def __init__(self, parameters: ReadParameters) -> None:
        self.parameters = parameters
        self.tokens: list[Token[bool]] = []

    def __enter__(self) -> None:
        self.parameters.__enter__()
        self.tokens.append(_IS_AGAIN.set(True))

    def __exit__(self, *_: object) -> None:
        _IS_AGAIN.reset(self.tokens.pop())
        self.parameters.__exit__()


def _part(results: tuple[object, ...], i: int) -> object:
    return results[i]


def _again(inner: fx.GraphModule, number: int) -> Callable[..., object]:
    forward = inner.forward

    def call(*given: object) -> object:
        if not torch.is_grad_enabled():
            return forward(*given)
        if torch.compiler.is_compiling():  # its partitioner reads nothing else
            return checkpoint(forward, *given, use_reentrant=False)
        read = ReadParameters(given)
        return checkpoint(
            read.bound(forward), *read.values, use_reentrant=False, context_fn=lambda: (nullcontext(), _OnceMore(read))
        )

    call.__name__ = call.__qualname__ = f"again_{number}"
    call.__module__ = __name__
    return call
