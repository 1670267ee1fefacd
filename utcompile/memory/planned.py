"""A tuned graph as it is run in training: the same operations, some of which keep less for backward."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.node import Argument

from utcompile.graph import (
    ACTIVATIONS,
    Role,
    copy_graph,
    function_of,
    info,
    is_state,
    module_operation,
    more_than_its_class,
    value_of,
)
from utcompile.memory.branch import remade_branch
from utcompile.memory.calls import remade_call
from utcompile.memory.functions import bit_relu, frozen_conv, frozen_conv_of_kept
from utcompile.memory.max_pool import small_index_pool
from utcompile.memory.one_call import as_it_is, one_calls
from utcompile.memory.product import remade_product
from utcompile.memory.queries import lone_queries, own_memory
from utcompile.memory.reading import Reading
from utcompile.memory.recipe import Recipe, Ref, Step
from utcompile.ops import Trait, having
from utcompile.rewrite.functional import to_function
from utcompile.tuners import Lora, recomputed

_CHEAP = having(Trait.CHEAP)
_CONVS = having(Trait.CONV)
_BRANCHES = _CONVS | {"linear"}
_PASSES = having(Trait.SAME | Trait.DROPOUT)
_LONGEST = 6  # steps of a recipe
Spelled = tuple[Callable[..., torch.Tensor], tuple[Argument, ...], dict[str, Argument]]


@dataclass(frozen=True)
class Saving:
    """One value that is not kept any more.

    Attributes:
        value: the node that yields it.
        how: `remade`, `bits`, `index`, `frozen input` or `queries alone`.
        by: the nodes that kept it.
    """

    value: str
    how: str
    by: tuple[str, ...]


def plan_graph(
    graph: fx.Graph, root: nn.Module, follows_mode: bool
) -> tuple[fx.Graph, tuple[Saving, ...], tuple[str, ...]]:
    """A copy of a tuned graph that keeps less, what it does not keep, and the paths of layers that it does not call.

    Args:
        graph: of a tuned module; it stays as it is.
        root: that module.
        follows_mode: whether the backbone's layers may be in training mode.
    """
    planned = copy_graph(graph)
    writer = Planner(planned, root, follows_mode)
    changes = [*writer.remade(), *writer.pools(), *writer.convolutions(), *writer.relus(), *writer.queries()]
    joined = list(one_calls(writer.reading))
    for change in changes:  # what is read of the graph is read before anything in it changes
        change.make()
    for call in joined:
        writer.layers |= call.write(planned, root)
    return planned, tuple(change.saving for change in changes), tuple(sorted(writer.layers))


@dataclass(frozen=True)
class _Change:
    saving: Saving
    make: Callable[[], None]


class Planner:
    """Finds in a graph, which it changes, what need not be kept."""

    def __init__(self, graph: fx.Graph, root: nn.Module, follows_mode: bool) -> None:
        self.graph, self.root = graph, root
        self.reading = Reading(graph, root, follows_mode)
        self.layers: set[str] = set()  # paths of the modules that are not called
        self.pooled: set[fx.Node] = set()  # ReLUs that run on the result of the pool after them

    def _nodes(self, names: Container[str]) -> Iterator[fx.Node]:
        """The nodes of the backbone that are an operation, and through which a gradient passes."""
        read = self.reading
        for node in read.operations:
            fits = read.operations[node].name in names and node in read.trains and node not in read.regions
            if fits and (node.op != "call_module" or self._is_plain(node)):
                yield node

    def _is_plain(self, node: fx.Node) -> bool:
        return more_than_its_class(self.root.get_submodule(str(node.target))) is None

    # --- values that are made again

    def remade(self) -> Iterator[_Change]:
        """Let consumers that can make their input again do so, where then nothing keeps it."""
        for value, keepers, recipe, starts in self.remade_values():
            saving = Saving(value.name, "remade", tuple(sorted(k.name for k in keepers)))
            yield _Change(saving, partial(self._remake, value, keepers, recipe, starts))

    def remade_values(self) -> list[tuple[fx.Node, set[fx.Node], Recipe, list[fx.Node]]]:
        """The values that can be made again, what keeps each, how it is made, and of what."""
        chosen: list[tuple[fx.Node, set[fx.Node], Recipe, list[fx.Node]]] = []
        needed: set[fx.Node] = set()  # what recipes start from
        dropped: set[tuple[fx.Node, fx.Node]] = set()  # (consumer, what it does not keep any more)
        for value in list(self.graph.nodes):
            keepers = self._keepers_to_change(value)
            if not keepers or value in needed or any(keeper in keepers for keeper, _ in dropped):
                continue
            found = self._recipe(value, dropped)
            if found is not None:
                chosen.append((value, keepers, *found))
                needed |= set(found[1])
                dropped |= {(keeper, value) for keeper in keepers}
        return chosen

    def _keepers_to_change(self, value: fx.Node) -> set[fx.Node]:
        """What keeps a cheap value, if all of it can make the value again."""
        read = self.reading
        if value not in read.trains or value not in read.operations or value_of(value) is None:
            return set()
        if read.operations[value].name not in _CHEAP or read.shares_memory(value):
            return set()
        keepers = read.keepers(value)
        return keepers if all(self._can_remake(k, value) for k in keepers) else set()

    def _can_remake(self, keeper: fx.Node, value: fx.Node) -> bool:
        """Whether a node is a branch of LoRA, a call on a tuned weight, or a product of two values."""
        tuner = self.reading.tuner(keeper)
        if type(tuner) is Lora:
            direct = tuner.branch is not None and tuner.branch.name in _BRANCHES
            return direct and len(keeper.args) == 2 and self._is(keeper.args[0], value)
        if keeper.target is recomputed:
            others = [n for n in (*keeper.args[2:], *keeper.kwargs.values()) if isinstance(n, fx.Node)]
            return self._is(keeper.args[1], value) and value not in others
        op = self.reading.operations[keeper]
        return (
            op.name == "mul"
            and len(op.inputs) == 2
            and not info(keeper).inplace
            and [self._is(n, value) for n in op.inputs].count(True) == 1
        )

    def _is(self, node: object, value: fx.Node) -> bool:
        """Whether a node is a value, or passes it on as it is."""
        while isinstance(node, fx.Node) and node is not value and self.reading.operations[node].name in _PASSES:
            if not self.reading.shares_memory(node):
                break
            node = self.reading.operations[node].inputs[0]
        return node is value

    def _recipe(self, value: fx.Node, dropped: set[tuple[fx.Node, fx.Node]]) -> tuple[Recipe, list[fx.Node]] | None:
        """How to make a value from what is kept anyway, and from frozen parameters."""
        starts: list[fx.Node] = []
        order: list[fx.Node] = []

        def visit(node: fx.Node) -> bool:
            if node in order or node in starts:
                return True
            if node is not value and (
                is_state(node) or value_of(node) is None or self.reading.surely_kept(node, dropped)
            ):
                starts.append(node)
                return True
            op = self.reading.operations[node]
            if op.name not in _CHEAP or node in self.reading.regions or info(node).mutates or len(order) >= _LONGEST:
                return False
            if not all(visit(n) for n in node.all_input_nodes):
                return False
            order.append(node)
            return self._steppable(node)

        if not visit(value):
            return None
        spelled = [self._spelled(node) for node in order]
        self.layers |= {str(node.target) for node in order if node.op == "call_module"}
        for _, args, kwargs in spelled:  # parameters of modules
            starts += [n for n in _nodes_in((args, kwargs)) if n not in starts and n not in order]
        places: dict[fx.Node, Ref] = {n: Ref(i) for i, n in enumerate([*starts, *order])}
        steps = tuple(
            Step(f, *fx.node.map_arg((args, kwargs), places.__getitem__))  # type: ignore[arg-type]  # no graph has it
            for f, args, kwargs in spelled
        )
        return Recipe(steps), starts

    def _steppable(self, node: fx.Node) -> bool:
        """Whether a call can be written as a step: of tensors and constants alone."""
        if info(node).role is not None or (info(node).inplace and not self._is_activation(node)):
            return False
        if node.op == "call_module":
            return self._is_plain(node) and len(node.args) == 1 and not node.kwargs
        return True

    def _is_activation(self, node: fx.Node) -> bool:
        """Whether a node is an activation that keeps its input: written in place, it keeps a copy of it."""
        return self.reading.operations[node].name in ACTIVATIONS - {"relu"} and node.op == "call_module"

    def _spelled(self, node: fx.Node) -> Spelled:
        if node.op == "call_function":
            return node.target, node.args, dict(node.kwargs)  # type: ignore[return-value]
        if node.op == "call_method":
            return _method(str(node.target)), node.args, dict(node.kwargs)
        op = self.reading.operations[node]
        if op.name in having(Trait.NORM):
            return self._norm(node)
        return function_of(op.name), node.args, dict(op.attributes)

    def _norm(self, node: fx.Node) -> Spelled:
        with self.graph.inserting_before(node):
            copy = self.graph.node_copy(node)
        to_function(self.graph, copy, self.root)
        spelled = copy.target, copy.args, dict(copy.kwargs)
        self.graph.erase_node(copy)
        return spelled  # type: ignore[return-value]

    def _remake(self, value: fx.Node, keepers: set[fx.Node], recipe: Recipe, starts: list[fx.Node]) -> None:
        """Let nodes make one of their inputs again; they stay the same nodes, with their readers and meta."""
        if info(value).inplace and self._is_activation(value):
            name, attributes = module_operation(self.root.get_submodule(str(value.target)))
            self._call(value, function_of(name), value.args, attributes)
        for keeper in keepers:
            if type(self.reading.tuner(keeper)) is Lora:
                with self.graph.inserting_before(keeper):
                    tuner = self.graph.get_attr(str(keeper.target))
                self._call(keeper, _with_recipe(remade_branch, recipe), (tuner, *keeper.args, *starts))
                continue
            if keeper.target is recomputed:
                args = (keeper.args[0], keeper.args[1:], keeper.kwargs, *starts)
                self._call(keeper, _with_recipe(remade_call, recipe), args)
                continue
            first, second = self.reading.operations[keeper].inputs
            if not self._is(first, value):
                first, second = second, first
            self._call(keeper, _with_recipe(remade_product, recipe), (first, second, *starts))

    # --- operations that keep less

    def convolutions(self) -> Iterator[_Change]:
        """Frozen convolutions that keep no input."""
        for node in self._nodes(_CONVS):
            source = node.args[0] if node.args else None
            if not isinstance(source, fx.Node) or source not in self.reading.trains or info(node).role is not None:
                continue
            count = {"call_module": 1, "call_function": 7}.get(node.op)
            if len(node.args) == count and not node.kwargs and self.reading.keeps_no_input(node):
                yield _Change(Saving(source.name, "frozen input", (node.name,)), partial(self._freeze, node))

    def _freeze(self, node: fx.Node) -> None:
        if node.op == "call_module":
            self.layers.add(str(node.target))
            to_function(self.graph, node, self.root)
        self._call(node, frozen_conv_of_kept if self._is_kept(node) else frozen_conv, node.args)

    def _is_kept(self, node: fx.Node) -> bool:
        """Whether a branch of LoRA keeps the input of a convolution."""
        for reader in node.args[0].users if isinstance(node.args[0], fx.Node) else ():
            tuner = self.reading.tuner(reader)
            if (
                type(tuner) is Lora
                and tuner.dropout is None
                and len(reader.args) == 2
                and reader.args[0] is node.args[0]
            ):
                return True
        return False

    def pools(self) -> Iterator[_Change]:
        """Max-pools that keep a small index instead of their input and a large one, with the ReLU before them."""
        for node in self._nodes(("pool",)):
            if not self.reading.is_plain_pool(node):
                continue
            leaf = self.root.get_submodule(str(node.target))
            assert isinstance(leaf, nn.MaxPool2d)
            settings = (leaf.kernel_size, leaf.stride, leaf.padding, leaf.dilation, leaf.ceil_mode)
            relu = self._relu_before(node)
            value = node.all_input_nodes[0]
            if relu is not None:
                self.pooled.add(relu)
            saving = Saving(value.name, "index", (node.name,))
            yield _Change(saving, partial(self._pool, node, settings, relu))

    def _relu_before(self, pool: fx.Node) -> fx.Node | None:
        """The ReLU whose result a pool alone reads; what it reads nothing else does, or it does not write there."""
        node = pool.args[0]
        if not isinstance(node, fx.Node) or info(node).role is not None or node not in set(self._nodes(("relu",))):
            return None
        source = node.args[0] if node.args else None
        writes = self._writes(node)
        if set(node.users) != {pool} or writes is None or not isinstance(source, fx.Node):
            return None
        return node if not writes or (set(source.users) == {node} and self._is_new(source)) else None

    def _is_new(self, node: fx.Node) -> bool:
        """Whether what a node yields is surely in new memory."""
        is_layer = self.reading.operations[node].name in _CONVS | having(Trait.NORM) and not info(node).inplace
        return is_layer or node.target is recomputed or info(node).role is Role.BRANCH

    def _pool(self, node: fx.Node, settings: tuple[Argument, ...], relu: fx.Node | None) -> None:
        if relu is not None:
            self._call(relu, as_it_is, relu.args[:1])
        self._call(node, small_index_pool, (node.args[0], *settings, relu is not None))

    def relus(self) -> Iterator[_Change]:
        """ReLUs whose result nothing else keeps: one bit per number."""
        for node in self._nodes(("relu",)):
            if info(node).role is not None or not node.args or self.reading.keepers(node) != {node}:
                continue
            if node in self.pooled:
                continue
            if (inplace := self._writes(node)) is not None:
                args = (node.args[0], inplace)
                yield _Change(Saving(node.name, "bits", (node.name,)), partial(self._call, node, bit_relu, args))

    def queries(self) -> Iterator[_Change]:
        """Queries that are copied, where they would keep the memory of keys and values too."""
        for attention, queries, packed in lone_queries(self.reading):
            saving = Saving(packed.name, "queries alone", (attention.name,))
            yield _Change(saving, partial(self._copy, attention, queries))

    def _copy(self, attention: fx.Node, queries: fx.Node) -> None:
        with self.graph.inserting_before(attention):
            copy = self.graph.call_function(own_memory, (queries,))
        copy.meta = dict(queries.meta)
        attention.args = (copy, *attention.args[1:])

    def _writes(self, node: fx.Node) -> bool | None:
        """Whether a ReLU writes in place; None where it is spelled in a way that no one uses."""
        if node.op == "call_module" and len(node.args) == 1:
            return bool(self.root.get_submodule(str(node.target)).inplace)
        if node.target in (F.relu, torch.relu, "relu") and len(node.args) == 1:
            return bool(node.kwargs.get("inplace", False))
        return True if node.target in (torch.relu_, "relu_") else None

    def _call(
        self,
        node: fx.Node,
        function: Callable[..., object],
        args: tuple[Argument, ...],
        kwargs: dict[str, Argument] | None = None,
    ) -> None:
        if node.op == "call_module":
            self.layers.add(str(node.target))
        node.op, node.target, node.args, node.kwargs = "call_function", function, args, kwargs or {}


@cache
def _method(name: str) -> Callable[..., torch.Tensor]:
    """A method of tensors as a function; torch 2.11 does not compile `torch.Tensor.mul` that a recipe has."""

    def method(tensor: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        found: torch.Tensor = getattr(tensor, name)(*args, **kwargs)
        return found

    return method


def _nodes_in(value: Argument) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return found


def _with_recipe(function: Callable[..., object], recipe: Recipe) -> Callable[..., object]:
    """A function that fx can call by a name, with its recipe in it."""

    def call(*args: object) -> object:
        return function(recipe, *args)

    call.__name__ = call.__qualname__ = function.__name__
    call.__module__ = __name__
    call.recipe = recipe  # type: ignore[attr-defined]
    return call
