"""The frozen prefix of a tuned module, below its first tuner, as one module, and the rest as another."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from math import prod
from typing import ClassVar

import torch
from torch import fx, nn
from torch.fx.graph import PythonCode

from utcompile.errors import UtcError
from utcompile.graph import Role, Size, UtcGraphModule, info, is_state, tensor, value_of
from utcompile.graph.functions import copied
from utcompile.memory.plan import MemoryPlan
from utcompile.memory.reading import Reading
from utcompile.memory.segments import out_of_place
from utcompile.ops import Trait, having
from utcompile.rewrite.tuned import for_compiler, is_compiled

_CHEAP = having(Trait.NORM | Trait.ACTIVATION | Trait.ARITHMETIC | Trait.AXES | Trait.SAME | Trait.DROPOUT | Trait.VIEW)


class Rest(UtcGraphModule):
    """A tuned module from its first tuner on: it trains as the whole does, and keeps as little."""

    memory: MemoryPlan | None = None
    _plain_forward: ClassVar[Callable[..., object]]
    _compiled_forward: Callable[..., object]
    kept_attributes = (*UtcGraphModule.inherited, "memory")

    def recompile(self) -> PythonCode:
        """Generate `forward` again from the graph."""
        code = super().recompile()
        self.__dict__.pop("_planned", None)
        own = type(self)
        own._plain_forward = own.forward
        own.forward = _planned_or_plain(for_compiler(weakref.ref(self)))
        return code

    def train(self, mode: bool = True) -> Rest:
        """Set the mode of the tuners; the frozen backbone stays in eval."""
        super().train(mode)
        if "tuners" in self._modules:
            self.get_submodule("tuners").train(mode)
        return self


def _planned_or_plain(prepared: Callable[[object], bool]) -> Callable[..., object]:
    def forward(self: Rest, *args: object, **kwargs: object) -> object:
        if is_compiled() and self.memory is not None and prepared(self.memory.again):
            return self._compiled_forward(self, *args, **kwargs)
        planned = None if torch.compiler.is_compiling() or self.memory is None else self.memory.forward_of(self)
        return self._plain_forward(*args, **kwargs) if planned is None else planned(self, *args, **kwargs)

    found: Callable[..., object] = copied(forward)
    return found


def split_prefix(tuned: UtcGraphModule) -> tuple[UtcGraphModule, Rest]:
    """Cut off what lies below the first tuner: `rest(*prefix(x))` is `tuned(x)`.

    The prefix has no parameter that trains, so what it yields for a sample is the same in every epoch and can be kept.
    Both share their parameters with the tuned module.

    Args:
        tuned: a tuned module; it stays as it is.

    Returns:
        The prefix, from the model's inputs to a tuple of values; and the rest, from these to the model's output.

    Raises:
        UtcError: a tuner reads the model's inputs, so there is no prefix; or a region (of autocast, `no_grad`) or a
            write in place spans the cut.

    Example:
        >>> import torch, utcompile as utc
        >>> layers = [torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU()) for _ in range(3)]
        >>> x = torch.randn(2, 8)
        >>> model = torch.nn.Sequential(*layers, torch.nn.Linear(8, 2))
        >>> tuned = utc.compile(model, "probe/linear", (x,))
        >>> prefix, rest = utc.split_prefix(tuned)
        >>> torch.equal(rest(*prefix(x)), tuned(x)), any(p.requires_grad for p in prefix.parameters())
        (True, False)
    """
    if not isinstance(tuned, UtcGraphModule):
        raise UtcError(
            f"split_prefix takes a TunedModule, not {type(tuned).__name__}",
            fix="compile the model first: utc.compile",
            code="arguments/type",
        )
    reading = Reading(tuned.graph, tuned, tuned.follows_mode)
    if any(info(n).region or info(n).mutates for n in tuned.graph.nodes):
        raise UtcError(
            "the prefix of this model cannot be cut off",
            why="it has regions (of autocast or no_grad), or writes in place, which may span the cut",
            fix="train it whole",
            code="memory/prefix",
        )
    if tuned.follows_mode:
        raise UtcError(
            "the prefix of this model cannot be cut off",
            why="its layers obey the mode, so what they yield for a sample differs from call to call",
            fix="compile with base='frozen'",
            code="memory/prefix",
        )
    below = _below(tuned.graph, reading)
    border = _border(tuned.graph, below)
    if not border or all(n.op == "placeholder" for n in border):
        raise UtcError(
            "there is no frozen prefix",
            why="a tuner reads the model's inputs",
            fix="train it whole, or insert no tuner in the first layers",
            code="memory/prefix",
        )
    prefix = UtcGraphModule(tuned, _first(tuned.graph, below, border), "Prefix")
    rest = Rest(tuned, _second(tuned.graph, tuned, below, border), "Rest")
    for part in (prefix, rest):
        _forget_unread(part)
    rest.memory = _memory_of(tuned, rest)
    prefix.eval()
    return prefix, rest.train(tuned.training)


def _memory_of(tuned: UtcGraphModule, rest: UtcGraphModule) -> MemoryPlan | None:
    """The plan of the whole for its rest: what runs again in backward is above the cut, and has the same names."""
    plan = getattr(tuned, "memory", None)
    return plan.of_part(tuned, rest) if isinstance(plan, MemoryPlan) else None


def _below(graph: fx.Graph, reading: Reading) -> set[fx.Node]:
    """The nodes that no trained parameter reaches; what is cheap and makes the border no larger is left to the rest."""
    tainted: set[fx.Node] = set()
    written = {n.args[1] for n in graph.nodes if info(n).role is Role.BRANCH and len(n.args) > 1}
    for node in graph.nodes:
        trains = node in reading.trains or node in written or node.op == "output"
        if trains or not tainted.isdisjoint(node.all_input_nodes):
            tainted.add(node)
    below = {n for n in graph.nodes if n not in tainted and not is_state(n) and n.op != "get_attr"}
    while True:
        border = _border(graph, below)
        size = _size(border)
        for node in border:
            cheap = node.op != "placeholder" and reading.operations[node].name in _CHEAP and not info(node).inplace
            cheap = cheap and below.isdisjoint(node.users)  # a side network reads what the backbone goes on with
            if cheap and _size(_border(graph, below - {node})) <= size:
                below = below - {node}
                break
        else:
            return below


def _border(graph: fx.Graph, below: set[fx.Node]) -> list[fx.Node]:
    """The values that nodes after the cut read: tensors, and numbers that are no size of one of them."""
    read = [n for n in graph.nodes if n in below and any(u not in below and not info(u).check for u in n.users)]
    tensors = [n for n in read if value_of(n) is not None]
    return tensors + [n for n in read if value_of(n) is None and _size_of(n, tensors) is None]


def _size(border: list[fx.Node]) -> int:
    return sum(prod(tensor(n).sizes(1)) for n in border if value_of(n) is not None)


def _size_of(node: fx.Node, tensors: list[fx.Node]) -> tuple[fx.Node, int] | None:
    """A tensor and its axis that has the size which a node yields."""
    size = info(node).size
    for t in tensors:
        for axis, known in enumerate(tensor(t).shape):
            if isinstance(size, Size) and known == size:
                return t, axis
    return None


def _first(graph: fx.Graph, below: set[fx.Node], border: list[fx.Node]) -> fx.Graph:
    """The graph up to the cut."""
    result, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        checks = info(node).check and all(n in below for n in node.all_input_nodes)
        if node in below or checks or (is_state(node) and any(u in below or is_state(u) for u in node.users)):
            copies[node] = result.node_copy(node, copies.__getitem__)
    result.output(tuple(copies[n] for n in border))
    return _without_unread(result)


def _second(graph: fx.Graph, root: nn.Module, below: set[fx.Node], border: list[fx.Node]) -> fx.Graph:
    """The graph from the cut on."""
    result = fx.Graph()
    copies = {node: result.placeholder(f"value_{i}") for i, node in enumerate(border)}
    for node, copy in copies.items():
        copy.meta = {k: v for k, v in node.meta.items() if k == "value"}
    tensors = [n for n in border if value_of(n) is not None]
    given = {tensor(n).storage for n in tensors}
    for node in graph.nodes:
        if node in below:
            found = None if node in copies or info(node).check else _size_of(node, tensors)
            if found is not None:
                copies[node] = result.call_method("size", (copies[found[0]], found[1]))
        elif not info(node).check or all(n in copies for n in node.all_input_nodes):
            copies[node] = result.node_copy(node, copies.__getitem__)
            source = node.args[0] if node.args else None
            if info(node).inplace and isinstance(source, fx.Node) and tensor(source).storage in given:
                out_of_place(copies[node], root)
    return _without_unread(result)


def _without_unread(graph: fx.Graph) -> fx.Graph:
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output") and not info(node).check:
            graph.erase_node(node)
    graph.lint()
    return graph


def _forget_unread(part: UtcGraphModule) -> None:
    """A part has the layers and parameters that its graph reads."""
    part.delete_all_unused_submodules()
    read = {str(n.target) for n in part.graph.nodes if n.op == "get_attr"}
    called = [str(n.target) for n in part.graph.nodes if n.op == "call_module"]
    for name, _ in list(part.named_parameters(remove_duplicate=False)):
        path, _, attribute = name.rpartition(".")
        if name not in read and not any(path == c or path.startswith(f"{c}.") for c in called):
            del part.get_submodule(path)._parameters[attribute]
