"""`match: {parameter: …}`: a parameter as a value of the graph. Its reads are one place, and share one tuner."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from utcompile.graph import GraphView, tensor, value_of
from utcompile.matching.engine import Bindings
from utcompile.ops import Trait, having
from utcompile.rules import glob_match

_STILL = having(Trait.SAME | Trait.REPEATS)  # their result is still the parameter


def parameters_read(glob: str, view: GraphView) -> Iterator[Bindings]:
    """The parameters that the graph reads by name, each at its first read, without buffers."""
    names = view.parameters
    found: set[str] = set()
    for node in view.nodes:
        name = str(node.target)
        if node.op == "get_attr" and name in names and name not in found and glob_match(glob, name):
            found.add(name)
            yield {"h": node}


def reads_of(parameter: fx.Node, view: GraphView) -> tuple[fx.Node, ...]:
    """Every read of a parameter."""
    return tuple(n for n in view.nodes if n.op == "get_attr" and n.target == parameter.target)


def channel_axis_of(parameter: fx.Node, view: GraphView) -> int | None:
    """The channel axis of a parameter: that of the values it meets, aligned from the end as in broadcasting."""
    known, rank = view.channel_axis[parameter], tensor(parameter).rank
    if rank == 1:  # a gain or a shift, whatever it is reshaped to
        return 0
    stack, seen = [parameter], {parameter}
    while known is None and stack:
        for user in stack.pop().users:
            value, axis = value_of(user), view.channel_axis.get(user)
            if user in seen or value is None or "reshape" in view.classes[user] or "permute" in view.classes[user]:
                continue
            seen.add(user)
            if axis is None and view.operations[user].name in _STILL:
                stack.append(user)
            elif axis is not None and 0 <= (own := axis - (value.rank - rank)) < rank:
                known = own if tensor(parameter).shape[own] == value.shape[axis] else known
    return known
