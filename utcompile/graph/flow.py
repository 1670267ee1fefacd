"""How each operation carries the axes of what it reads to what it makes.

An operation that is not here makes axes that nobody knows; nothing is guessed from sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from math import prod
from operator import mul
from types import EllipsisType
from typing import Any

from torch import fx

from utcompile.graph.axes import Atom, Axis, Origin, Sizes, regrouped, resolved, same, whole
from utcompile.graph.meta import value_of
from utcompile.graph.operations import Operation, is_state
from utcompile.graph.table import ELEMENTWISE
from utcompile.graph.value import BATCH, Size

_KEPT = frozenset(
    "contiguous detach identity to flip softmax log_softmax normalize tril triu scatter scatter_add index_copy "
    "scatter_reduce index_add index_fill index_put masked_scatter copy fill channel_shuffle requires_grad real imag "
    "fftshift ifftshift".split()
)
_NORMS = frozenset("batch_norm instance_norm group_norm local_response_norm".split())
_REDUCED = frozenset(
    "mean sum prod max min std var median nanmean nansum logsumexp vector_norm all any argmax argmin "
    "count_nonzero".split()
)
_ALONG = frozenset("cumsum cumprod cummax logcumsumexp sort argsort diff topk gather index_select narrow glu".split())
_LETTERS = {1: "L", 2: "HW", 3: "DHW"}


class Flow:
    """The axes of the values of one graph, found in graph order."""

    def __init__(self, operations: Mapping[fx.Node, Operation], written: Callable[[fx.Node], Operation]) -> None:
        self.operations, self.written = operations, written
        self.axes: dict[fx.Node, list[Axis]] = {}
        self.position: dict[fx.Node, int] = {}
        self.size = Sizes()
        self._count = 0

    def visit(self, node: fx.Node) -> None:
        """Find the axes of a node's value; its inputs have theirs."""
        self.position[node] = len(self.position)
        value = value_of(node)
        if value is None or is_state(node):
            return
        sizes = [self.size(s) for s in value.shape]
        op = self.operations[node]
        if op.attributes.get("spelled_out"):
            op = self.written(node)
        known = all(i in self.axes for i in op.inputs)
        handler = _HANDLERS.get(op.name) if known and op.inputs else None
        found = handler(self, node, op, sizes) if handler else None
        if op.name == "getitem" and not op.inputs and isinstance(node.args[0], fx.Node):
            found = _part(self, node, node.args[0], sizes)
        if found is None or len(found) != len(sizes):
            found = [None] * len(sizes)
        self.axes[node] = [
            axis if axis is not None and prod(a.size for a in axis) == size else self.fresh(size, shape=dim)
            for axis, size, dim in zip(found, sizes, value.shape, strict=True)
        ]

    # --- making and naming axes -----------------------------------------------------------------------------------

    def fresh(
        self, size: int, role: str | None = None, *, letter: str = "", maker: fx.Node | None = None, shape: Any = None
    ) -> Axis:
        """An axis of its own; one whose size varies with the batch or a length is known by that."""
        if isinstance(shape, Size) and role is None:
            symbols = {s for monomial, _ in shape.terms for s in monomial}
            role = "batch" if BATCH in symbols else "space"
        if size == 1 and role != "channel":
            return ()
        self._count += 1
        return (Atom(Origin(size, role, self._count, letter, maker), 1, size),)

    def like(self, axis: Axis, size: int) -> Axis:
        """An axis of another size in place of an axis: cut, padded or pooled.

        What is left of channels are channels, but for an axis that holds them among other things.
        """
        axis = resolved(axis)
        if prod(a.size for a in axis) == size:
            return axis
        role = _role(axis) if len({a.origin.role for a in axis}) == 1 else None
        made = self.fresh(size, role, letter=_letter([axis]))
        if made and role == "channel":
            made[0].origin.makers |= {m: None for a in axis for m in a.origin.makers}
        return made

    def say(self, node: fx.Node, index: int, role: str, letter: str = "") -> None:
        """An operation that reads a value says what one of its axes holds, where nobody has said it."""
        axis = resolved(self.axes[node][index])
        if not axis and role == "channel":  # one channel
            self.axes[node][index] = self.fresh(1, role)
            return
        origin = whole(axis)
        if origin is not None and origin.role is None:
            origin.role, origin.letter = role, letter

    def read(self, node: fx.Node) -> list[Axis]:
        """The axes of a value."""
        return [resolved(a) for a in self.axes[node]]

    def together(self, nodes: Iterable[fx.Node], sizes: Sequence[int]) -> list[Axis | None]:
        """The axes of a result that values are broadcast to; equal places are made known to be the same."""
        found: list[Axis | None] = [() if s == 1 else None for s in sizes]
        for node in sorted(set(nodes), key=self.position.__getitem__):
            axes = self.axes[node]
            skip = len(sizes) - len(axes)
            for i, axis in enumerate(axes, skip):
                if i < 0 or prod(a.size for a in axis) != sizes[i] or (sizes[i] == 1 and not axis):
                    continue
                kept = found[i]
                if kept:
                    same(kept, axis)
                    found[i] = resolved(kept)
                else:
                    found[i] = axis
        return found


def _role(axis: Axis) -> str | None:
    roles = {a.origin.role for a in axis}
    for role in ("channel", "space"):
        if role in roles:
            return role
    return roles.pop() if len(roles) == 1 else None


def _letter(axes: Sequence[Axis]) -> str:
    """What axes are called that are one side of an image each."""
    letters = {axis[0].origin.letter if len(axis) == 1 else "" for axis in axes}
    return letters.pop() if len(letters) == 1 else ""


Found = list[Axis | None] | None
Handler = Callable[[Flow, fx.Node, Operation, list[int]], Found]


# --- layers -----------------------------------------------------------------------------------------------------------


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
    if channels and channels[0].origin.role == "batch":  # a filter a sample: the batch stands among the channels
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
        kept = prod(a.size for a in axis) == size and _role(axis) == "space"
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
    return _keep(flow, node, op, sizes)


def _last_norm(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    # without a weight a channel it may run over anything
    if op.parameters and len(op.attributes.get("normalized_shape", (1,))) == 1:
        flow.say(op.inputs[0], -1, "channel")
    return _keep(flow, node, op, sizes)


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
        if len(fits) == 2 and _role(fits[0]) is None and whole(fits[0]):
            same(fits[1], fits[0])
        batch.append(resolved(fits[0]) if fits else None)
    return [*batch, *_unlike(resolved(left[-2]), resolved(right[-1]))]


def _unlike(rows: Axis, columns: Axis) -> tuple[Axis | None, Axis | None]:
    """Channels beside the same channels (a Gram matrix) are no longer channels of anything."""
    shared = {a.origin for a in rows if a.origin.role == "channel"} & {a.origin for a in columns}
    return (None, None) if shared else (rows, columns)


def _sdpa(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
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
            if letter not in found or (letter in made and _role(found[letter]) is None):
                found[letter] = axis
            elif _role(axis) is None or letter not in made:
                same(found[letter], axis)
    weights = [letter for letter in made if letter not in found]  # of a parameter: what the product makes
    if weights:
        sides = [sizes[made.index(w)] for w in weights]
        whole_axis = flow.fresh(prod(sides), "channel", maker=node)
        found |= {w: a for w, a in zip(weights, regrouped(whole_axis, sides), strict=True) if a is not None}
    result: list[Axis | None] = [resolved(found[letter]) if letter in found else None for letter in made]
    origins = [a.origin for axis in result if axis for a in {t.origin: t for t in axis}.values()]
    twice = {o for o in origins if o.role == "channel" and origins.count(o) > 1}
    clear = {o for o in twice if prod(a.size for axis in result if axis for a in axis if a.origin is o) > o.size}
    return [None if axis and clear & {a.origin for a in axis} else axis for axis in result]


# --- what keeps, moves and cuts axes ----------------------------------------------------------------------------------


def _keep(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    axes = flow.read(op.inputs[0])
    return [*axes] if len(axes) == len(sizes) else None


def _elementwise(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    return flow.together(op.inputs, sizes)


def _reshape(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    return regrouped((a for axis in flow.read(op.inputs[0]) for a in axis), sizes)


def _permute(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    axes = flow.read(op.inputs[0])
    return [axes[i] for i in permutation_of(op, len(axes))]


def _roll(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    """Rolled channels are channels, but cannot be divided as they were: a head would hold another's last one."""
    axes, dims = flow.read(op.inputs[0]), op.attributes.get("dims")
    for dim in range(len(axes)) if dims is None else dims if isinstance(dims, tuple) else (dims,):
        if _role(axes[dim]) == "channel":
            made = flow.fresh(sizes[dim], "channel")
            made[0].origin.makers |= {m: None for a in axes[dim] for m in a.origin.makers}
            made[0].origin.solid = True
            axes[dim] = made
    return [*axes]


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
    """What mixes or picks places of one axis: the others stay."""
    axes, dim = flow.read(op.inputs[0]), op.attributes.get("dim")
    if not isinstance(dim, int) or len(axes) != len(sizes):
        return None
    role = _role(axes[dim])
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
    """One place of some axes: where they held a digit of an origin, the other digits are an origin of their own."""
    axes = flow.read(source)
    gone = {d % len(axes) for d in dims}
    for index in gone:
        for atom in axes[index]:
            if atom.size < atom.origin.size:
                axes = _rebased(flow, axes, atom.origin, {atom: 1})
    return [a for i, a in enumerate(axes) if i not in gone]


def _rebased(flow: Flow, axes: list[Axis], origin: Origin, resized: Mapping[Atom, int]) -> list[Axis]:
    """The digits of an origin as a new origin, some of them of another size."""
    digits = sorted((a for axis in axes for a in axis if a.origin is origin), key=lambda a: a.stride)
    sizes = [resized.get(a, a.size) for a in digits]
    role = origin.role if prod(a.size for a in digits) == origin.size else None  # some of it was summed over
    made = flow.fresh(prod(sizes), role, letter=origin.letter)
    if made and role == "channel":
        made[0].origin.makers |= origin.makers
        made[0].origin.solid = origin.solid
    strides = dict(zip(digits, accumulate([1, *sizes[:-1]], mul), strict=True))
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
    found = flow.together(op.inputs, others)
    parts = [resolved(flow.axes[i][dim]) for i in op.inputs]
    roles = [_role(p) for p in parts if p]
    role = next((r for r in ("channel", "space") if r in roles), None)
    if role == "channel" and any(a.stride > 1 for p in parts for a in p if a.origin.role == "channel"):
        role = None  # more heads: what is within a head has no whole any more
    made = flow.fresh(sizes[dim], role, letter=_letter(parts))
    if made and role == "channel":
        made[0].origin.makers |= {m: None for p in parts for a in p for m in a.origin.makers}
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


def _part(flow: Flow, node: fx.Node, source: fx.Node, sizes: list[int]) -> Found:
    """One of several outputs: of a split, of a recurrent layer, of a maximum with its places."""
    op = flow.operations[source]
    if op.name in ("lstm", "gru", "rnn") and node.args[1] == 0 and op.inputs and op.inputs[0] in flow.axes:
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
        order = [d for d in order if d not in {s % rank for s in source}]
        for s, d in sorted(zip(source, destination, strict=True), key=lambda pair: pair[1] % rank):
            order.insert(d % rank, s % rank)
    return tuple(order)


_HANDLERS: Mapping[str, Handler] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(_KEPT, _keep),
    **dict.fromkeys(_NORMS, _channel_norm),
    **dict.fromkeys(_REDUCED, _reduce),
    **dict.fromkeys(_ALONG, _along),
    **dict.fromkeys(("layer_norm", "rms_norm"), _last_norm),
    **dict.fromkeys((f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3)), _conv),
    **dict.fromkeys(("pool", "interpolate", "pad"), _resized),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), _pixels),
    **dict.fromkeys(("permute", "transpose"), _permute),
    "linear": _linear,
    "addmm": _addmm,
    "baddbmm": _addmm,
    "embedding": _embedding,
    "matmul": _matmul,
    "sdpa": _sdpa,
    "einsum": _einsum,
    "reshape": _reshape,
    "expand": _expand,
    "roll": _roll,
    "repeat": _repeat,
    "repeat_interleave": _repeat_interleave,
    "unfold": _unfold,
    "select": _select,
    "cat": _cat,
    "stack": _stack,
    "getitem": _getitem,
}
