"""Constants: what depends on no input is computed once, in float64, and rounded once, into a buffer.

1. Learned tokens of an attention: `K_p` and `V_p` are the same for every sample. A prefix holds them; a prompt P has
   them by the frozen norm and projections, `K_p = W_k LN(P) + b_k`. The attention itself stays as it is.
2. On request, what the base computes from parameters alone in each call: gathers of a relative position bias, weight
   standardisation, tables of positions of a fixed length.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from utcompile.fold.execute import run_node
from utcompile.fold.folding import Folding, Unfoldable
from utcompile.fold.patch import Added, Draft, Editor, New, Patch, Remove, Replace
from utcompile.graph import Role, Size, info, operation, origin_of, tensor, value_of
from utcompile.rewrite import TunedSite

_MADE_FROM_NOTHING = frozenset((torch.arange, torch.zeros, torch.ones, torch.full, torch.linspace, torch.eye))
# what costs next to nothing: a constant that only these make is a view of a parameter
_FREE = frozenset("reshape permute transpose contiguous detach identity expand getitem split to dropout".split())


def constant_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that are computed from parameters, buffers and numbers alone."""
    known = ConstantNodes()
    return {node for node in graph.nodes if node in known}


class ConstantNodes:
    """The nodes that are computed from parameters, buffers and numbers alone, each looked at once, when asked for.

    A graph may be changed meanwhile, as long as no node that was asked for becomes another.
    """

    def __init__(self) -> None:
        self._known: dict[fx.Node, bool] = {}

    def __contains__(self, node: fx.Node) -> bool:
        stack = [node]
        while stack:
            last = stack[-1]
            inputs = last.all_input_nodes
            unknown = next((i for i in inputs if i not in self._known), None)
            if last.op != "output" and unknown is not None and all(self._known.get(i, True) for i in inputs):
                stack.append(unknown)
                continue
            self._known[last] = _is_start(last) if not inputs else all(self._known.get(i, False) for i in inputs)
            stack.pop()
        return self._known[node] and node.op != "output"


def _is_start(node: fx.Node) -> bool:
    """Whether a node that reads no other is constant."""
    if node.op == "call_module":
        return info(node).site is not None  # a module of the base that reads nothing may be random
    return node.op == "get_attr" or (node.op == "call_function" and node.target in _MADE_FROM_NOTHING)


# --- learned tokens --------------------------------------------------------------------------------------------------


def plan_tokens(model: Folding, site: TunedSite, nodes: dict[Role, list[fx.Node]]) -> Patch:
    """Find the learned keys and values of a site, and how they become constants.

    Raises:
        Unfoldable: they cannot be the same for every sample.
    """
    (tuner,) = nodes[Role.TUNER]
    return _from_stream(model, site, nodes) if not tuner.args else _from_tuner(model, site, tuner)


def _from_stream(model: Folding, site: TunedSite, nodes: dict[Role, list[fx.Node]]) -> Patch:
    """Everything up to what is repeated for each sample."""
    constant = constant_nodes(model.graph)
    ends = [n for n in nodes.get(Role.PART, ()) if n in constant and any(u not in constant for u in n.users)]
    if len(ends) != 2 or any(len(n.users) != 1 for n in ends):
        raise Unfoldable("what its tokens become depends on the input")
    repeated = [next(iter(n.users)) for n in ends]
    sizes = [i for n in repeated for i in n.all_input_nodes if i not in ends]

    draft = Draft()
    for name, end in zip(("keys", "values"), ends, strict=True):
        buffer = _buffer(model, draft, site.path, f"{site.tuner}_{name}", model.evaluate(end), end)
        draft.edits.append(Replace(end, by=buffer))
    draft.edits.append(Unread(tuple(n for role in nodes.values() for n in role if n in constant and n not in ends)))
    return draft.patch((i for s in sizes for i in s.all_input_nodes), repeated, 1.0)


@dataclass(frozen=True)
class Unread:
    """An edit: nodes that come in graph order go, last first, where nothing reads them any more."""

    nodes: tuple[fx.Node, ...]

    def make(self, graph: Editor) -> None:
        """Do it."""
        for node in reversed(self.nodes):
            if not node.users:
                graph.remove(node)


def _from_tuner(model: Folding, site: TunedSite, tuner: fx.Node) -> Patch:
    """The tuner is asked once; that it yields the same for every input is for the proof to find out."""
    given = [n for n in tuner.args if isinstance(n, fx.Node)]
    parts = sorted(tuner.users, key=lambda n: n.args[1])  # type: ignore[arg-type, return-value]
    if len(given) != 2 or [p.args[1] for p in parts] != [0, 1]:
        raise Unfoldable("its keys and values are not found")
    for node in given:
        shape = tensor(node).shape
        if not isinstance(shape[0], Size) or any(isinstance(d, Size) for d in shape[1:-2]):
            raise Unfoldable(f"{node.name} {tensor(node)} has not the batch, and it alone, in front")

    example = {n: torch.zeros(tensor(n).sizes(1), dtype=torch.float64) for n in given}
    try:
        made = run_node(model.root, tuner, example.__getitem__)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise Unfoldable(f"it does not run alone: {type(error).__name__}: {error}".partition("\n")[0]) from error
    draft = Draft()
    for name, part, like, value in zip(("keys", "values"), parts, given, made, strict=True):
        draft.edits.append(Replace(part, by=_for_all(model, draft, site, name, part, like, value)))
    draft.edits.append(Remove(tuner))
    return draft.patch(given, parts, 1.0)


def _for_all(
    model: Folding, draft: Draft, site: TunedSite, name: str, part: fx.Node, like: fx.Node, value: torch.Tensor
) -> Added:
    """A constant for every sample: `(1, …, heads, length, d)` seen B times, or `(heads, length, d)` repeated."""
    rank, origin = tensor(like).rank, origin_of(part)
    buffer = _buffer(model, draft, site.path, f"{site.tuner}_{name}", value[:1] if rank > 3 else value, part)
    batch = Added("call_method", "size", (like, 0), part, origin)
    if rank > 3:
        every = (buffer, batch, *[-1] * (rank - 1))
        draft.edits += [batch, made := Added("call_method", "expand", every, part, origin, value=tensor(part))]
        return made
    times = Added("call_function", operator.floordiv, (batch, value.shape[0]), part, origin)
    made = Added("call_method", "repeat", (buffer, times, 1, 1), part, origin, value=tensor(part))
    draft.edits += [batch, times, made]
    return made


# --- the base --------------------------------------------------------------------------------------------------------


def plan_constants(model: Folding) -> Iterator[tuple[str, Patch]]:
    """What the base computes from parameters alone, each with the name of the buffer that it becomes."""
    constant = constant_nodes(model.graph)
    for node in list(model.graph.nodes):
        if node not in constant or node.op == "get_attr" or all(u in constant for u in node.users):
            continue
        while operation(node, model.root).name == "expand":  # which would be written out
            (node,) = node.all_input_nodes
        sources = _ancestors(node)
        names = [str(n.target) for n in sources if n.op == "get_attr"]
        read = next((n for n in names if model.is_parameter(n)), names[0] if names else None)
        costs = any(_costs(n, model) for n in sources)
        tuned = any(info(n).site is not None for n in sources)
        if read is None or not costs or tuned or not _is_floating(node):
            continue
        name = f"{read}_constant"
        yield name, _replaced(model, node, name)


def _costs(node: fx.Node, model: Folding) -> bool:
    gathers = len(node.all_input_nodes) > 1  # indices from a table, and no part of a tensor
    return node.op != "get_attr" and (gathers or operation(node, model.root).name not in _FREE)


def _replaced(model: Folding, node: fx.Node, name: str) -> Patch:
    path, _, attribute = name.rpartition(".")
    draft = Draft()
    buffer = _buffer(model, draft, path, attribute, model.evaluate(node), node)
    draft.edits.append(Replace(node, by=buffer))
    dead = [n for n in reversed(_ancestors(node)) if n.op != "get_attr" and n is not node]
    draft.edits.append(Unread(tuple(dead)))
    return draft.patch((), (node,), 1.0)


def _ancestors(node: fx.Node) -> list[fx.Node]:
    """A constant and all it is computed from, readers before what they read."""
    found, stack = {node}, [node]
    while stack:
        for source in stack.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                stack.append(source)
    return sorted(found, reverse=True)


def _is_floating(node: fx.Node) -> bool:
    value = value_of(node)
    return value is not None and value.dtype.is_floating_point


def _buffer(model: Folding, draft: Draft, path: str, name: str, value: torch.Tensor, node: fx.Node) -> Added:
    """A buffer next to the layers that it serves, and the node that reads it, before a node."""
    try:
        owner = model.root.get_submodule(path)
    except AttributeError:  # where a parameter stands alone, its module was never called
        owner, path = model.root, ""
    while hasattr(owner, name):
        name += "_"
    qualified = f"{path}.{name}".lstrip(".")
    draft.values[qualified] = New(value.detach().clone().contiguous(), model.home, buffer=True)
    read = Added("get_attr", qualified, (), node, origin_of(node), state=True, value=value_of(node))
    draft.edits.append(read)
    return read
