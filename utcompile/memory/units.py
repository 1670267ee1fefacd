"""A graph cut into units, each of which can be run again in backward: between values that are few and small."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase

from utcompile.graph import Role, info, is_state, origin_of, tensor, value_of
from utcompile.memory.reading import Reading

_NEAR = 12  # nodes
_FEWEST, _MOST = 6, 24  # values of a unit, where there is a choice


@dataclass(frozen=True)
class Unit:
    """Nodes in a row that can be run again together.

    Attributes:
        first, last: the names of its first and last node.
        path: the module that most of it is of.
    """

    first: str
    last: str
    path: str


def units_of(graph: fx.Graph, root: nn.Module, follows_mode: bool) -> tuple[Unit, ...]:
    """The units of a tuned graph through which gradients pass, in order.

    A cut is where one value with a gradient is all that later nodes read; in a graph that has hardly any such place,
    where the values that later nodes read are smaller than near it.
    """
    reading = Reading(graph, root, follows_mode)
    nodes = [n for n in graph.nodes if n.op != "output"]
    trains = [i for i, n in enumerate(nodes) if n in reading.trains and n.op != "get_attr"]
    if not trains:
        return ()
    cuts = _cuts(nodes, reading, trains[0])
    first = trains[0]
    if info(nodes[first]).role is Role.BRANCH:  # it writes into the operation's result
        first = nodes.index(nodes[first].args[1])
    bounds = [first, *(i + 1 for i in cuts), len(nodes)]
    found = []
    for start, end in pairwise(bounds):
        part = nodes[start:end]
        if start < end and all(_can_run_again(n, reading) for n in part):
            found.append(_unit(part))
    return tuple(found)


def _unit(part: list[fx.Node]) -> Unit:
    paths = [origin_of(n).path for n in part if value_of(n) is not None]
    deepest = max(paths, key=paths.count, default="")
    return Unit(part[0].name, part[-1].name, deepest)


def _cuts(nodes: list[fx.Node], reading: Reading, start: int) -> list[int]:
    """The places after which the graph is cut."""
    values = [n in reading.trains and value_of(n) is not None and not _is_of_parameters(n) for n in nodes]
    last = _last_reads(nodes)
    alive: set[fx.Node] = set()
    count, size = [0] * len(nodes), [0] * len(nodes)
    for i, node in enumerate(nodes):
        alive = {n for n in alive if last[n] > i}
        if values[i] and last[node] > i:
            alive.add(node)
        count[i], size[i] = len(alive), sum(prod(tensor(n).sizes(1)) for n in alive)
    free = [i for i in range(start, len(nodes) - 1) if values[i] and last[nodes[i]] > i and _can_cut(nodes, i)]
    alone = [i for i in free if count[i] == 1]
    least = [i for i in free if size[i] == min(size[max(i - _NEAR, 0) : i + _NEAR])]
    return _spaced(alone if len(alone) > 1 else least, values)


def _spaced(cuts: list[int], values: list[bool]) -> list[int]:
    """Cuts without those that would leave a unit of few nodes: such nodes belong to the unit before them."""
    found: list[int] = []
    for cut in cuts:
        before = found[-2] if len(found) > 1 else -1
        if found and sum(values[found[-1] + 1 : cut + 1]) < _FEWEST and sum(values[before + 1 : cut + 1]) < _MOST:
            found.pop()
        found.append(cut)
    return found


def _last_reads(nodes: list[fx.Node]) -> dict[fx.Node, int]:
    position = {n: i for i, n in enumerate(nodes)}
    return {n: max((position.get(u, len(nodes)) for u in n.users), default=position[n]) for n in nodes}


def _is_of_parameters(node: fx.Node) -> bool:
    """Whether a node is a parameter, or what a tuner makes of one."""
    return node.op == "get_attr" or (bool(node.all_input_nodes) and all(map(is_state, node.all_input_nodes)))


def _can_cut(nodes: list[fx.Node], i: int) -> bool:
    """Whether nothing writes into what a node yields: LoRA's branch writes into the operation's result."""
    return not any(info(u).role is Role.BRANCH and u.args[1:2] == (nodes[i],) for u in nodes[i].users)


def _can_run_again(node: fx.Node, reading: Reading) -> bool:
    plain = node not in reading.regions and not info(node).mutates and node.op != "placeholder"
    return plain and not (reading.follows_mode and _changes_state(node, reading))


def _changes_state(node: fx.Node, reading: Reading) -> bool:
    """Whether a call in training mode may write into a buffer, other than a norm's layer, which is run again apart."""
    if node.op == "call_module":
        layers = reading.root.get_submodule(str(node.target)).modules()
        return any(layer._buffers and not isinstance(layer, _NormBase) for layer in layers)
    return reading.operations[node].name in ("batch_norm", "instance_norm")
