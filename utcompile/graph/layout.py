"""Where the channels of a value are, inferred from the operations that make and read it.

Convolutions and batch norms put them on axis 1, linears and layer norms on the last; elementwise operations, pools and
paddings keep them; permutes and reshapes move them. An unknown axis is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from torch import fx

from utcompile.graph.classes import is_slice
from utcompile.graph.meta import value_of
from utcompile.graph.operations import ACTIVATIONS, Operation
from utcompile.graph.value import Size, Value

_FIRST = ("conv", "batch_norm", "instance_norm", "group_norm")
_LAST = ("linear", "layer_norm", "rms_norm", "embedding")
_KEEP = ACTIVATIONS | set(
    "add sub mul div contiguous detach identity roll pad expand to dropout softmax pool interpolate".split()
)


def channel_axes(nodes: Sequence[fx.Node], operations: Mapping[fx.Node, Operation]) -> dict[fx.Node, int | None]:
    """The channel axis of every tensor, from its maker where that tells, else from its readers."""
    axes: dict[fx.Node, int | None] = {}
    position = {n: i for i, n in enumerate(nodes)}
    for node in nodes:
        op = operations[node]
        if op.name == "add" and len(op.inputs) == 2:
            _agree(op, sorted(op.inputs, key=position.__getitem__), operations, axes)
        axes[node] = _from_maker(node, op, axes)
    for node in reversed(nodes):
        value = value_of(node)
        if axes[node] is None and value is not None:
            axes[node] = next(
                (a for u in node.users if (a := _from_reader(node, u, value, operations, axes)) is not None), None
            )
    return axes


def _agree(
    op: Operation, inputs: list[fx.Node], operations: Mapping[fx.Node, Operation], axes: dict[fx.Node, int | None]
) -> None:
    """What is added to a stream of one shape has the stream's channels, though a token-mixing linear made it."""
    stream, branch = inputs
    a, b = value_of(stream), value_of(branch)
    if a is None or b is None or a.shape != b.shape or axes[stream] is None:
        return
    while axes[branch] != axes[stream]:
        axes[branch] = axes[stream]
        made = operations[branch]
        if made.name not in _KEEP or len(made.inputs) != 1 or made.name == "expand":
            return
        branch = made.inputs[0]


def _stated(name: str, rank: int) -> int | None:
    if name.startswith(_FIRST):
        return 1 if rank > 1 else None
    return rank - 1 if name in _LAST else None


def _from_maker(node: fx.Node, op: Operation, axes: Mapping[fx.Node, int | None]) -> int | None:
    value = value_of(node)
    if value is None or not value.rank:
        return None
    stated = _stated(op.name, value.rank)
    if stated is not None:
        return stated
    for source in op.inputs:
        axis, before = axes.get(source), value_of(source)
        if axis is None or before is None:
            continue
        if op.name in _KEEP or op.name == "cat" or is_slice(op):
            if before.rank == value.rank:
                return axis
        elif op.name in ("permute", "transpose"):
            return permutation_of(op, value.rank).index(axis)
        elif op.name == "reshape":
            return carried(before, value, axis)
        elif op.name == "mean":
            return _after_mean(op, axis, before.rank)
        else:
            return None
    return None


def _from_reader(
    node: fx.Node,
    user: fx.Node,
    value: Value,
    operations: Mapping[fx.Node, Operation],
    axes: Mapping[fx.Node, int | None],
) -> int | None:
    op, after = operations[user], value_of(user)
    if not op.inputs or (op.inputs[0] is not node and op.name not in _KEEP):
        return None
    stated = _stated(op.name, value.rank)
    if stated is not None or after is None:
        return stated
    axis = axes.get(user)
    if axis is None:
        return None
    if op.name in _KEEP and after.rank == value.rank:
        return axis
    if op.name in ("permute", "transpose"):
        return permutation_of(op, value.rank)[axis]
    return carried(after, value, axis) if op.name == "reshape" else None


def permutation_of(op: Operation, rank: int) -> tuple[int, ...]:
    """The axis order of a permute or transpose: axis i of the result is axis `order[i]` of its input."""
    order = list(range(rank))
    given: Any = op.attributes
    if op.name == "transpose":
        a, b = given["dim0"] % rank, given["dim1"] % rank
        order[a], order[b] = order[b], order[a]
    elif "dims" in given:
        order = [d % rank for d in given["dims"]]
    else:  # movedim
        source, destination = (
            x if isinstance(x, (tuple, list)) else (x,) for x in (given["source"], given["destination"])
        )
        rest = [d for d in order if d not in {s % rank for s in source}]
        for s, d in sorted(zip(source, destination, strict=True), key=lambda pair: pair[1] % rank):
            rest.insert(d % rank, s % rank)
        order = rest
    return tuple(order)


def carried(before: Value, after: Value, axis: int) -> int | None:
    """The axis of a reshape's result that holds the same channels: equal size, equal product of what stands before it.

    Checked at two batch sizes, so that a batch that happens to equal a channel count does not mislead.
    """
    found: int | None = None
    for i, size in enumerate(after.shape):
        if isinstance(size, Size) or size != before.shape[axis]:
            continue
        if all(prod(before.sizes(b)[:axis]) == prod(after.sizes(b)[:i]) for b in (2, 3)):
            found = i
    return found


def _after_mean(op: Operation, axis: int, rank: int) -> int | None:
    dims = op.attributes["dim"]
    if dims is None:
        return None
    reduced = {d % rank for d in (dims if isinstance(dims, (tuple, list)) else (dims,))}
    if axis in reduced:
        return None
    return axis if op.attributes["keepdim"] else axis - sum(d < axis for d in reduced)
