"""Constants: what depends on no input is computed once, in float64, and rounded once, into a buffer.

1. Learned tokens of an attention: `K_p` and `V_p` are the same for every sample. A prefix holds them; a prompt P has
   them by the frozen norm and projections, `K_p = W_k LN(P) + b_k`. The attention itself stays as it is.
2. On request, what the base computes from parameters alone in each call: gathers of a relative position bias, weight
   standardisation, tables of positions of a fixed length.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from functools import partial

import torch
from torch import fx

from utcompile.fold.execute import in_float64
from utcompile.fold.layers import Planned, Unfoldable, Work
from utcompile.graph import Role, Size, info, inserted, operation, origin_of, run_node, tensor, value_of
from utcompile.ops import Trait, having
from utcompile.rewrite import TunedSite

_MADE_FROM_NOTHING = frozenset((torch.arange, torch.zeros, torch.ones, torch.full, torch.linspace, torch.eye))
# what costs next to nothing: a constant that only these make is a view of a parameter
_FREE = having(Trait.VIEW | Trait.SAME | Trait.DROPOUT)


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


def plan_tokens(work: Work, site: TunedSite, nodes: dict[Role, list[fx.Node]]) -> Planned:
    """Find the learned keys and values of a site, and how they become constants.

    Raises:
        Unfoldable: they cannot be the same for every sample.
    """
    (tuner,) = nodes[Role.TUNER]
    return _from_stream(work, site, nodes) if not tuner.args else _from_tuner(work, site, tuner)


def _from_stream(work: Work, site: TunedSite, nodes: dict[Role, list[fx.Node]]) -> Planned:
    """Everything up to what is repeated for each sample."""
    constant = constant_nodes(work.graph)
    ends = [n for n in nodes.get(Role.PART, ()) if n in constant and any(u not in constant for u in n.users)]
    if len(ends) != 2 or any(len(n.users) != 1 for n in ends):
        raise Unfoldable("what its tokens become depends on the input")
    repeated = [next(iter(n.users)) for n in ends]
    sizes = [i for n in repeated for i in n.all_input_nodes if i not in ends]

    def commit() -> list[fx.Node]:
        for name, end in zip(("keys", "values"), ends, strict=True):
            made = work.evaluate(end)
            end.replace_all_uses_with(_buffer(work, site.path, f"{site.tuner}_{name}", made, end))
        for node in reversed([n for role in nodes.values() for n in role if n in constant]):
            if not node.users:
                work.graph.erase_node(node)
        return repeated

    return Planned(tuple(i for s in sizes for i in s.all_input_nodes), tuple(repeated), commit, 1.0)


def _from_tuner(work: Work, site: TunedSite, tuner: fx.Node) -> Planned:
    """The tuner is asked once; that it yields the same for every input is for the proof to find out."""
    given = [n for n in tuner.args if isinstance(n, fx.Node)]
    parts = sorted(tuner.users, key=lambda n: n.args[1])  # type: ignore[arg-type, return-value]
    if len(given) != 2 or [p.args[1] for p in parts] != [0, 1]:
        raise Unfoldable("its keys and values are not found")
    for node in given:
        shape = tensor(node).shape
        if not isinstance(shape[0], Size) or any(isinstance(d, Size) for d in shape[1:-2]):
            raise Unfoldable(f"{node.name} {tensor(node)} has not the batch, and it alone, in front")

    def commit() -> list[fx.Node]:
        example = {n: torch.zeros(tensor(n).sizes(1), dtype=torch.float64) for n in given}
        made = run_node(work.root, tuner, example.__getitem__, in_float64)
        results = []
        for name, part, like, value in zip(("keys", "values"), parts, given, made, strict=True):
            results.append(_for_all(work, site, name, part, like, value))
            part.replace_all_uses_with(results[-1])
            work.graph.erase_node(part)
        work.graph.erase_node(tuner)
        return results

    return Planned(tuple(given), tuple(parts), commit, 1.0)


def _for_all(work: Work, site: TunedSite, name: str, part: fx.Node, like: fx.Node, value: torch.Tensor) -> fx.Node:
    """A constant for every sample: `(1, …, heads, length, d)` seen B times, or `(heads, length, d)` repeated."""
    rank = tensor(like).rank
    buffer = _buffer(work, site.path, f"{site.tuner}_{name}", value[:1] if rank > 3 else value, part)
    with work.graph.inserting_before(part):
        made = [work.graph.call_method("size", (like, 0))]
        if rank > 3:
            made.append(work.graph.call_method("expand", (buffer, made[0], *[-1] * (rank - 1))))
        else:
            made.append(work.graph.call_function(operator.floordiv, (made[0], value.shape[0])))
            made.append(work.graph.call_method("repeat", (buffer, made[1], 1, 1)))
    for node in made:
        inserted(node, info(part).origin)
    info(made[-1]).value = tensor(part)
    return made[-1]


# --- the base --------------------------------------------------------------------------------------------------------


def plan_constants(work: Work) -> Iterator[tuple[str, Planned]]:
    """What the base computes from parameters alone, each with the name of the buffer that it becomes."""
    constant = constant_nodes(work.graph)
    for node in list(work.graph.nodes):
        if node not in constant or node.op == "get_attr" or all(u in constant for u in node.users):
            continue
        while operation(node, work.root).name == "expand":  # which would be written out
            (node,) = node.all_input_nodes
        sources = _ancestors(node)
        names = [str(n.target) for n in sources if n.op == "get_attr"]
        read = next((n for n in names if work.is_parameter(n)), names[0] if names else None)
        costs = any(_costs(n, work) for n in sources)
        tuned = any(info(n).site is not None for n in sources)
        if read is None or not costs or tuned or not _is_floating(node):
            continue
        name = f"{read}_constant"
        yield name, Planned((), (node,), partial(_replace, work, node, name), 1.0)


def _costs(node: fx.Node, work: Work) -> bool:
    gathers = len(node.all_input_nodes) > 1  # indices from a table, and no part of a tensor
    return node.op != "get_attr" and (gathers or operation(node, work.root).name not in _FREE)


def _replace(work: Work, node: fx.Node, name: str) -> list[fx.Node]:
    path, _, attribute = name.rpartition(".")
    buffer = _buffer(work, path, attribute, work.evaluate(node), node)
    node.replace_all_uses_with(buffer)
    for dead in _ancestors(node):
        if not dead.users and dead.op != "get_attr":
            work.graph.erase_node(dead)
    return [buffer]


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


def _buffer(work: Work, path: str, name: str, value: torch.Tensor, node: fx.Node) -> fx.Node:
    """A buffer beside the layers that it serves, and the node that reads it, before a node."""
    try:
        owner = work.root.get_submodule(path)
    except AttributeError:  # where a parameter stands alone, nobody called its module
        owner, path = work.root, ""
    while hasattr(owner, name):
        name += "_"
    home = work.home
    owner.register_buffer(name, value.detach().clone().contiguous())
    qualified = f"{path}.{name}".lstrip(".")
    work.changed[qualified] = home
    work.touched.add(qualified)
    with work.graph.inserting_before(node):
        read = work.graph.get_attr(qualified)
    inserted(read, origin_of(node), state=True)
    if (known := value_of(node)) is not None:
        info(read).value = known
    return read
