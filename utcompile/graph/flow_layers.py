"""How layers and products carry axes: convolutions, linears, norms, matmuls and attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from torch import fx

from utcompile.graph.axes import Axis, Found, regrouped, resolved, role_of, same, whole
from utcompile.graph.flow import Flow, keep
from utcompile.graph.operations import Operation
from utcompile.ops import Axes

_LETTERS = {1: "L", 2: "HW", 3: "DHW"}


def _conv(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    x, spatial = op.inputs[0], int(op.name[-2])
    at = len(sizes) - spatial - 1  # 0 for a single sample
    if len(flow.axes[x]) != len(sizes) or at not in (0, 1):
        return None
    if at:
        flow.say(x, 0, "batch")
    flow.say(x, at, "channel")
    for i, letter in enumerate(_LETTERS[spatial], at + 1):
        flow.say(x, i, "space", letter)
    before = flow.read(x)
    channels = before[at]
    groups = op.attributes.get("groups", 1)
    if channels and channels[0].origin.role == "batch":  # one filter per sample: the batch is among the channels
        batch = channels[0]
        made: Axis = (batch, *flow.fresh(sizes[at] // batch.size, "channel", maker=node))
    elif groups == sizes[at] == prod(a.size for a in channels):  # depthwise: the same channels
        made = channels
        for origin in {id(a.origin): a.origin for a in channels if a.origin.role == "channel"}.values():
            origin.makers[node] = None
    else:
        made = flow.fresh(sizes[at], "channel", maker=node)
    space = []
    for axis, size, letter in zip(before[at + 1 :], sizes[at + 1 :], _LETTERS[spatial], strict=True):
        kept = prod(a.size for a in axis) == size and role_of(axis) == "space"
        space.append(axis if kept else flow.fresh(size, "space", letter=letter))
    return [*before[:at], made, *space]


def _linear(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    flow.say(op.inputs[0], -1, "channel")
    return [*flow.read(op.inputs[0])[:-1], flow.fresh(sizes[-1], "channel", maker=node)]


def _addmm(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    if "mat2" in op.parameters:
        x = op.inputs[-1]
        flow.say(x, -1, "channel")
        return [*flow.read(x)[:-1], flow.fresh(sizes[-1], "channel", maker=node)]
    return _product(flow, op.inputs[-2], op.inputs[-1], sizes) if len(op.inputs) > 1 else None


def _embedding(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    return [*flow.read(op.inputs[0]), flow.fresh(sizes[-1], "channel", maker=node)]


def _channel_norm(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    x = op.inputs[0]
    if len(sizes) > 1:
        flow.say(x, 0, "batch")
        flow.say(x, 1, "channel")
    return keep(flow, node, op, sizes)


def _last_norm(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    # without one weight per channel it may run over anything
    if op.parameters and len(op.attributes.get("normalized_shape", (1,))) == 1:
        flow.say(op.inputs[0], -1, "channel")
    return keep(flow, node, op, sizes)


def _matmul(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    if len(op.inputs) == 2:
        return _product(flow, *op.inputs, sizes)
    x = flow.read(op.inputs[0])
    if "other" in op.parameters and len(sizes) == len(x):
        return _linear(flow, node, op, sizes)
    if "input" in op.parameters and len(sizes) == len(x) > 1:
        return [*x[:-2], flow.fresh(sizes[-2]), x[-1]]
    return None


def _product(flow: Flow, a: fx.Node, b: fx.Node, sizes: list[int]) -> Found:
    """`(…, n, k) @ (…, k, m)`: rows of the one, columns of the other; the columns' own batch, where they have it."""
    left, right = flow.read(a), flow.read(b)
    if len(left) < 2 or len(right) < 2 or len(sizes) != max(len(left), len(right)):
        return None
    same(left[-1], right[-2])
    batch = []
    for i, size in enumerate(sizes[:-2]):
        choices = [axes[i - len(sizes) + len(axes)] for axes in (right, left) if i - len(sizes) + len(axes) >= 0]
        fits = [resolved(c) for c in choices if prod(t.size for t in c) == size]
        if len(fits) == 2 and role_of(fits[0]) is None and whole(fits[0]):
            same(fits[1], fits[0])
        batch.append(resolved(fits[0]) if fits else None)
    return [*batch, *_unlike(resolved(left[-2]), resolved(right[-1]))]


def _unlike(rows: Axis, columns: Axis) -> tuple[Axis | None, Axis | None]:
    """Channels next to the same channels (a Gram matrix) are no longer channels of anything."""
    shared = {a.origin for a in rows if a.origin.role == "channel"} & {a.origin for a in columns}
    return (None, None) if shared else (rows, columns)


def _sdpa(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    if len(op.inputs) < 3:
        return None
    q, v = flow.read(op.inputs[0]), flow.read(op.inputs[2])
    if len(q) != len(v) or len(q) != len(sizes):
        return None
    fits = [prod(a.size for a in axis) == size for axis, size in zip(v[:-2], sizes[:-2], strict=True)]
    if not all(fits):  # fewer heads of keys and values than of queries
        made = flow.fresh(sizes[-3] * sizes[-1], "channel", maker=node)
        heads, inner = regrouped(made, (sizes[-3], sizes[-1]))
        return [*q[:-3], heads, q[-2], inner]
    return [*v[:-2], q[-2], v[-1]]


def _einsum(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    text = op.attributes.get("equation")
    operands = node.args[1:]
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = tuple(operands[0])
    if not isinstance(text, str) or "->" not in text or "..." in text:
        return None
    read, made = text.replace(" ", "").split("->")
    pairs = [
        (term, o)
        for term, o in zip(read.split(","), operands, strict=False)
        if isinstance(o, fx.Node) and o in flow.axes
    ]
    pairs.sort(key=lambda pair: made[-1:] not in pair[0])  # as of a matrix product: the columns' own axes come first
    found: dict[str, Axis] = {}
    for letters, operand in pairs:
        axes = flow.read(operand)
        if len(axes) != len(letters):
            return None
        for letter, axis in zip(letters, axes, strict=True):
            if letter not in found or (letter in made and role_of(found[letter]) is None):
                found[letter] = axis
            elif role_of(axis) is None or letter not in made:
                same(found[letter], axis)
    weights = [letter for letter in made if letter not in found]  # of a parameter: the product's own outputs
    if weights:
        sides = [sizes[made.index(w)] for w in weights]
        whole_axis = flow.fresh(prod(sides), "channel", maker=node)
        found |= {w: a for w, a in zip(weights, regrouped(whole_axis, sides), strict=True) if a is not None}
    result: list[Axis | None] = [resolved(found[letter]) if letter in found else None for letter in made]
    origins = [a.origin for axis in result if axis for a in {t.origin: t for t in axis}.values()]
    twice = {o for o in origins if o.role == "channel" and origins.count(o) > 1}
    clear = {o for o in twice if prod(a.size for axis in result if axis for a in axis if a.origin is o) > o.size}
    return [None if axis and clear & {a.origin for a in axis} else axis for axis in result]


LAYERS: Mapping[Axes, Callable[..., Found]] = {
    Axes.CHANNEL_NORM: _channel_norm,
    Axes.LAST_NORM: _last_norm,
    Axes.CONV: _conv,
    Axes.LINEAR: _linear,
    Axes.ADDMM: _addmm,
    Axes.EMBEDDING: _embedding,
    Axes.MATMUL: _matmul,
    Axes.SDPA: _sdpa,
    Axes.EINSUM: _einsum,
}
