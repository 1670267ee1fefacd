"""How operations without a weight carry axes: elementwise operations, reductions, moves, cuts and joins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from math import prod
from operator import mul
from types import EllipsisType

from torch import fx

from utcompile.graph.axes import (
    Atom,
    Axis,
    Found,
    Origin,
    inherit,
    letter_of,
    regrouped,
    resolved,
    role_of,
    seal,
    whole,
)
from utcompile.graph.flow import Flow, keep
from utcompile.graph.operations import Operation
from utcompile.ops import Axes


def _elementwise(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    return flow.together(op.inputs, sizes)


def _reshape(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    return regrouped((a for axis in flow.read(op.inputs[0]) for a in axis), sizes)


def _permute(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    axes = flow.read(op.inputs[0])
    return [axes[i] for i in _permutation_of(op, len(axes))]


def _roll(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    """Rolled channels are channels, but cannot be divided as before: a head would contain another head's last one."""
    axes = flow.read(op.inputs[0])
    if op.attributes.get("dims") is None and len(axes) > 1:
        return None  # all axes as one
    for dim in _dims(op, len(axes)):
        if role_of(axes[dim]) == "channel":
            axes = _shifted(flow, axes, dim, sizes[dim])
    return [*axes]


def _shifted(flow: Flow, axes: list[Axis], dim: int, size: int) -> list[Axis]:
    axis = axes[dim]
    if len(axis) == 1:  # a digit, within which all are shifted alike
        axes = _rebased(flow, axes, axis[0].origin, {})
        (atom,) = axes[dim]
        atom.origin.moved = True
        seal(atom.origin, atom.stride, atom.stride * atom.size)
        return axes
    origins = {a.origin for a in axis if a.origin.role == "channel"}
    origin = origins.pop()
    is_all = not origins and prod(a.size for a in axis if a.origin is origin) == origin.size
    made = flow.fresh(size, "channel" if is_all else None)  # else digits of other axes carry into one another
    if is_all:
        made[0].origin.makers |= origin.makers
        made[0].origin.moved = True
        seal(made[0].origin, 1, size)
    return [made if i == dim else a for i, a in enumerate(axes)]


def _flip(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    """Each digit is reversed by itself, so that flipped channels can be divided as before."""
    axes = flow.read(op.inputs[0])
    for dim in _dims(op, len(axes)):
        for origin in {a.origin: None for a in axes[dim] if a.origin.role == "channel"}:
            axes = _rebased(flow, axes, origin, {})
            for atom in axes[dim]:
                atom.origin.moved |= atom.origin.role == "channel"
    return [*axes]


def _dims(op: Operation, rank: int) -> list[int]:
    dims = op.attributes.get("dims")
    return [d % rank for d in (range(rank) if dims is None else dims if isinstance(dims, (tuple, list)) else (dims,))]


def _channel_shuffle(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    axes, groups = flow.read(op.inputs[0]), op.attributes.get("groups")
    if not isinstance(groups, int) or len(axes) < 2:
        return None
    outer, inner = regrouped(axes[1], (groups, sizes[1] // groups))
    return [axes[0], None if outer is None or inner is None else (*inner, *outer), *axes[2:]]


def _expand(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    return flow.together(op.inputs[:1], sizes)


def _repeat(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    axes = flow.read(op.inputs[0])
    found: list[Axis | None] = []
    for axis, size in zip([()] * (len(sizes) - len(axes)) + axes, sizes, strict=True):
        before = prod(a.size for a in axis)
        found.append((*flow.fresh(size // before), *axis) if before and size % before == 0 else None)
    return found


def _repeat_interleave(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    axes, dim = flow.read(op.inputs[0]), op.attributes.get("dim")
    if not isinstance(dim, int):
        return None
    before = prod(a.size for a in axes[dim])
    axes[dim] = (*axes[dim], *flow.fresh(sizes[dim] // before)) if sizes[dim] % before == 0 else ()
    return [*axes]


def _resized(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    axes = flow.read(op.inputs[0])
    return _cut(flow, axes, sizes) if len(axes) == len(sizes) else None


def _cut(flow: Flow, axes: list[Axis], sizes: Sequence[int]) -> Found:
    """Axes of other sizes; a cut through some digits of an origin leaves a smaller origin."""
    found = [*axes]
    for i, size in enumerate(sizes):
        axis = found[i]
        if prod(a.size for a in axis) == size:
            continue
        if len(axis) == 1 and whole(axis) is None:
            found = _rebased(flow, found, axis[0].origin, {axis[0]: size})
        else:
            found[i] = flow.like(axis, size)
    return [*found]


def _along(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    """Operations that mix or pick places of one axis: the other axes stay."""
    axes, dim = flow.read(op.inputs[0]), op.attributes.get("dim")
    if not isinstance(dim, int) or len(axes) != len(sizes):
        return None
    role = role_of(axes[dim])
    picked = op.name in ("narrow", "index_select", "glu")
    axes[dim] = flow.fresh(sizes[dim], role if picked or role != "channel" else None)
    return [*axes]


def _pixels(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    axes = flow.read(op.inputs[0])
    spaces = [flow.fresh(s, "space", letter=c) for s, c in zip(sizes[-2:], "HW", strict=True)]
    return [*axes[:-3], flow.fresh(sizes[-3], "channel", maker=node), *spaces]


def _unfold(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    axes = flow.read(op.inputs[0])
    if len(axes) != 4 or not (channels := prod(a.size for a in axes[1])) or sizes[1] % channels:
        return None
    return [axes[0], (*axes[1], *flow.fresh(sizes[1] // channels)), flow.fresh(sizes[2], "space")]


def _reduce(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    axes, dims = flow.read(op.inputs[0]), op.attributes.get("dim")
    if dims is None:
        return None
    gone = {d % len(axes) for d in (dims if isinstance(dims, tuple) else (dims,)) if isinstance(d, int)}
    if op.attributes.get("keepdim"):
        return [() if i in gone else a for i, a in enumerate(axes)]
    return [a for i, a in enumerate(axes) if i not in gone]


def _select(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    dim = op.attributes.get("dim")
    return _taken(flow, op.inputs[0], {dim}) if isinstance(dim, int) else None


def _taken(flow: Flow, source: fx.Node, dims: set[int]) -> Found:
    """One place of some axes: where they contained a digit of an origin, the other digits become a new origin."""
    axes = flow.read(source)
    gone = {d % len(axes) for d in dims}
    for index in gone:
        for origin in {a.origin: None for a in axes[index] if a.size < a.origin.size}:
            axes = _rebased(flow, axes, origin, {a: 1 for a in axes[index] if a.origin is origin})
    return [a for i, a in enumerate(axes) if i not in gone]


def _rebased(flow: Flow, axes: list[Axis], origin: Origin, resized: Mapping[Atom, int]) -> list[Axis]:
    """The digits of an origin as a new origin, some of them of another size."""
    digits = sorted((a for axis in axes for a in axis if a.origin is origin), key=lambda a: a.stride)
    sizes = [resized.get(a, a.size) for a in digits]
    role = origin.role if prod(a.size for a in digits) == origin.size else None  # some of it was summed over
    made = flow.fresh(prod(sizes), role, letter=origin.letter)
    if made and role == "channel":
        made[0].origin.makers |= origin.makers
        made[0].origin.moved = origin.moved
    strides = dict(zip(digits, accumulate([1, *sizes[:-1]], mul), strict=True))
    for low, high in origin.sealed if made else ():
        within = [a for a in digits if a.stride < high and low < a.stride * a.size]
        if any(a in resized for a in within):
            made[0].origin.makers.clear()
        if within:
            seal(made[0].origin, strides[within[0]], strides[within[-1]] * resized.get(within[-1], within[-1].size))
    return [
        tuple(
            Atom(made[0].origin, strides[a], resized.get(a, a.size)) if a.origin is origin else a
            for a in axis
            if a.origin is not origin or (made and resized.get(a, a.size) > 1)
        )
        for axis in axes
    ]


def _cat(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    dim = op.attributes.get("dim", 0)
    if not isinstance(dim, int):
        return None
    dim %= len(sizes)
    others = [s if i != dim else -1 for i, s in enumerate(sizes)]
    inputs = [i for i in op.inputs if len(flow.axes[i]) == len(sizes)]  # torch lets an empty vector join any tensor
    found = flow.together(inputs, others)
    parts = [resolved(flow.axes[i][dim]) for i in inputs]
    roles = [role_of(p) for p in parts if p]
    role = next((r for r in ("channel", "space") if r in roles), None)
    if role == "channel" and any(a.stride > 1 for p in parts for a in p if a.origin.role == "channel"):
        role = None  # more heads: the channels within a head are no longer whole
    made = flow.fresh(sizes[dim], role, letter=letter_of(parts))
    if made and role == "channel":
        inherit(made[0].origin, parts)
    found[dim] = made
    return found


def _stack(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    dim = op.attributes.get("dim", 0)
    if not isinstance(dim, int):
        return None
    dim %= len(sizes)
    found = flow.together(op.inputs, sizes[:dim] + sizes[dim + 1 :])
    return [*found[:dim], flow.fresh(sizes[dim]), *found[dim:]]


def _getitem(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    source, index = node.args[0], node.args[1]
    assert isinstance(source, fx.Node)
    if source not in flow.axes:
        return None  # rows of a parameter, by numbers that depend on an input
    parts = list(index) if isinstance(index, tuple) else [index]
    rank = len(flow.axes[source])
    used = sum(p is not None and not isinstance(p, EllipsisType) for p in parts)
    at = next((i for i, p in enumerate(parts) if isinstance(p, EllipsisType)), len(parts))
    parts[at : at + 1] = [slice(None)] * (rank - used)
    chosen: set[int] = set()
    shape: list[bool] = []  # whether an axis of the result is one of the source
    dim = 0
    for part in parts:
        if part is None:
            shape.append(False)
            continue
        if isinstance(part, int) and not isinstance(part, bool):
            chosen.add(dim)
        elif isinstance(part, slice):
            shape.append(True)
        else:
            return None  # places by a tensor
        dim += 1
    axes = _taken(flow, source, chosen)
    if axes is None or dim != rank or len(shape) != len(sizes):
        return None
    kept = [size for there, size in zip(shape, sizes, strict=True) if there]
    cut = iter(_cut(flow, [a or () for a in axes], kept) or ())
    return [next(cut) if there else () for there in shape]


def part_of(flow: Flow, node: fx.Node, source: fx.Node, sizes: list[int]) -> Found:
    """One of several outputs: of a split, of a recurrent layer, of a maximum with its places."""
    op = flow.operations[source]
    recurrent = op.name == "lstm_cell" or (op.name in ("lstm", "gru", "rnn") and node.args[1] == 0)
    if recurrent and op.inputs and op.inputs[0] in flow.axes:
        flow.say(op.inputs[0], -1, "channel")
        return [*flow.read(op.inputs[0])[:-1], flow.fresh(sizes[-1], "channel", maker=source)]
    if not op.inputs or op.inputs[0] not in flow.axes:
        return None
    if op.name in ("max", "min", "median"):
        return _reduce(flow, node, op, sizes)
    if op.name in ("sort", "topk", "cummax"):
        return _along(flow, node, op, sizes)
    dim = op.attributes.get("dim", 0)
    if op.name != "split" or not isinstance(dim, int):
        return None
    if len(flow.axes[op.inputs[0]]) > len(sizes):  # unbind
        return _taken(flow, op.inputs[0], {dim})
    return _resized(flow, node, op, sizes)


def _permutation_of(op: Operation, rank: int) -> tuple[int, ...]:
    """The axis order of a permute or transpose: axis i of the result is axis `order[i]` of its input."""
    order = list(range(rank))
    given = op.attributes
    if op.name == "transpose":
        a, b = given["dim0"] % rank, given["dim1"] % rank
        order[a], order[b] = order[b], order[a]
    elif "dims" in given:
        order = [d % rank for d in given["dims"]]
    else:  # movedim
        source, destination = (
            x if isinstance(x, (tuple, list)) else (x,) for x in (given["source"], given["destination"])
        )
        order = [d for d in order if d not in {s % rank for s in source}]
        for s, d in sorted(zip(source, destination, strict=True), key=lambda pair: pair[1] % rank):
            order.insert(d % rank, s % rank)
    return tuple(order)


MOVES: Mapping[Axes, Callable[..., Found]] = {
    Axes.TOGETHER: _elementwise,
    Axes.KEEP: keep,
    Axes.REDUCE: _reduce,
    Axes.ALONG: _along,
    Axes.RESIZE: _resized,
    Axes.PIXELS: _pixels,
    Axes.PERMUTE: _permute,
    Axes.RESHAPE: _reshape,
    Axes.EXPAND: _expand,
    Axes.ROLL: _roll,
    Axes.FLIP: _flip,
    Axes.CHANNEL_SHUFFLE: _channel_shuffle,
    Axes.REPEAT: _repeat,
    Axes.REPEAT_EACH: _repeat_interleave,
    Axes.UNFOLD: _unfold,
    Axes.SELECT: _select,
    Axes.JOIN: _cat,
    Axes.STACK: _stack,
    Axes.GETITEM: _getitem,
}
