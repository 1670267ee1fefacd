"""How an affine map of a value passes the operations around it, exactly: `T(v) = factor ⊙ v + shift`, or
`matrix · v + shift` along one axis, with an operation `w = g(v)` between.

What moves numbers about is run on the indices of the numbers, which says where each of them goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from utcompile.folding.case import Case
from utcompile.folding.execute import in_float64
from utcompile.folding.folding import Folding, Unfoldable
from utcompile.graph import Operation, info, is_state, operation, run_node, tensor, value_of
from utcompile.ops import Trait, having

CASES = (
    Case(
        "A4",
        "what moves numbers about: reshape, permute, heads, windows, slices, parts of a split, pixel shuffles, "
        "concatenation (on the way on), padding",
        "the numbers that T treats alike stay together",
        "factors of 2 for one channel and 3 for another cannot follow both into one number",
        "folding/test_through.py::test_kept_with_its_reason[ssf after a repetition]",
    ),
    Case(
        "A4",
        "",
        "a full M needs its axis whole",
        "a head has a part of the channels that M mixes",
        "folding/test_through.py::test_kept_with_its_reason[rep_adapter after heads]",
    ),
    Case(
        "A4",
        "",
        "c needs no padded zeros. The other parts of a split may be read by anyone",
        "a zero that is padded behind T has no c",
        "folding/test_through.py::test_kept_with_its_reason[ssf before explicit zeros]",
    ),
    Case(
        "A5",
        "average pooling, means of positions, interpolation: `g(m v + c) = m g(v) + c`",
        "its weights sum to one, or c = 0",
        "an average over a zero-padded border: in a 3×3 corner 4/9 of c",
        "folding/test_through.py::test_kept_with_its_reason[ssf after padded averages]",
    ),
    Case(
        "A6",
        "max pooling: `max(m v + c) = m max(v) + c`",
        "m > 0",
        "m = −1 turns the largest into the smallest",
        "folding/test_through.py::test_kept_with_its_reason[ssf through max pooling, with a negative factor]",
    ),
    Case(
        "A7",
        "ReLU, LeakyReLU: `σ(m v) = m σ(v)`",
        "m > 0, c = 0",
        "relu(−1 + 1) = 0, relu(−1) + 1 = 1",
        "folding/test_through.py::test_kept_with_its_reason[ssf through ReLU]",
    ),
)

_SAME = having(Trait.SAME | Trait.DROPOUT)
_MOVES = having(Trait.MOVES | Trait.PADS)
_HOMOGENEOUS = having(Trait.HOMOGENEOUS)


@dataclass(frozen=True)
class Elementwise:
    """`v -> factor ⊙ v + shift`; both have v's rank, and size 1 on the axes along which they do not vary."""

    factor: torch.Tensor
    shift: torch.Tensor


@dataclass(frozen=True)
class Mixing:
    """`v -> matrix · v + shift` along one axis, the same at every position."""

    axis: int
    matrix: torch.Tensor
    shift: torch.Tensor


Map = Elementwise | Mixing


def compressed(t: torch.Tensor) -> torch.Tensor:
    """A tensor with the axes along which it does not vary cut to 1; NaN stands for any number.

    >>> compressed(torch.tensor([[1.0, 2.0], [1.0, float("nan")]]))
    tensor([[1., 2.]])
    """
    for axis in range(t.dim()):
        if t.shape[axis] <= 1:
            continue
        unknown = t.isnan()
        low = t.masked_fill(unknown, torch.inf).amin(axis, keepdim=True)
        high = t.masked_fill(unknown, -torch.inf).amax(axis, keepdim=True)
        if bool((low >= high).all()):
            t = low.masked_fill(low > high, torch.nan)
    return t


def passes(op: Operation) -> bool:
    """Whether an operation with one input lets maps through, on conditions."""
    return op.name in _SAME or op.name in _MOVES or op.name in _HOMOGENEOUS or _pools(op)


def backward(model: Folding, path: Sequence[fx.Node], source: fx.Node, after: Map) -> Map:
    """The map of `source` that is, behind the operations of `path`, the map `after`.

    Args:
        model: the model.
        path: one operation, or a split and the part that is taken of it.
        source: what the first reads.
        after: the map of what the last yields.

    Raises:
        Unfoldable: there is none.
    """
    node, op = path[-1], operation(path[-1], model.root)
    if op.name in _SAME:
        return after
    if isinstance(after, Mixing):
        _check_linear(node, op)
        return _mixed_before(model, path, source, after)
    if op.name in _HOMOGENEOUS:
        return _homogeneous(node, op, after)
    if _pools(op):
        axes = _pooled_axes(node, op)
        factor, shift = after.factor, after.shift
        if op.name == "mean" and not op.attributes.get("keepdim", False):
            for axis in axes:
                factor, shift = factor.unsqueeze(axis), shift.unsqueeze(axis)
        _check_pool(model, node, op, source, Elementwise(factor, shift), axes)
        return Elementwise(factor, shift)
    return _moved_before(model, path, source, after)


def forward(model: Folding, path: Sequence[fx.Node], source: fx.Node, before: Map) -> Map:
    """The map of what the last of `path` yields, where the value it reads, `source`, has the map `before`.

    Raises:
        Unfoldable: there is none.
    """
    node, op = path[-1], operation(path[-1], model.root)
    if op.name in _SAME:
        return before
    if isinstance(before, Mixing):
        _check_linear(node, op)
        return _mixed_after(model, path, source, before)
    if op.name in _HOMOGENEOUS:
        return _homogeneous(node, op, before)
    if _pools(op):
        axes = _pooled_axes(node, op)
        _check_pool(model, node, op, source, before, axes)
        if op.name == "mean" and not op.attributes.get("keepdim", False):
            kept = [a for a in range(before.factor.dim()) if a not in axes]
            return Elementwise(*(t.permute(*kept, *axes).flatten(len(kept))[..., 0] for t in _pair(before)))
        return before
    return _moved_after(model, path, source, before)


def seen(model: Folding, path: Sequence[fx.Node], source: fx.Node) -> torch.Tensor:
    """Which numbers of `source` the last of `path` sees, as a mask of its shape; only for what moves numbers about."""
    if operation(path[-1], model.root).name not in _MOVES:
        return torch.ones(tensor(source).sizes(model.batch), dtype=torch.bool)
    index = _indices(model, path, source)
    mask = torch.zeros(tensor(source).sizes(model.batch), dtype=torch.bool).flatten()
    mask[index[index > 0] - 1] = True
    return mask.reshape(tensor(source).sizes(model.batch))


def _pair(m: Elementwise) -> tuple[torch.Tensor, torch.Tensor]:
    return m.factor, m.shift


def _pools(op: Operation) -> bool:
    return op.name in ("mean", "interpolate") or _pool_of(op) in ("avg", "max")


def _pool_of(op: Operation) -> str | None:
    """`avg`, `max` or `lp`, adaptive or not; None where an operation is no pooling."""
    return str(op.attributes.get("kind", "max")).removeprefix("adaptive_") if op.name == "pool" else None


def _check_linear(node: fx.Node, op: Operation) -> None:
    if op.name in _HOMOGENEOUS or _pool_of(op) == "max":
        raise Unfoldable(f"{op.name} ({node.name}) is on the way, and no full matrix passes through it")


def _pooled_axes(node: fx.Node, op: Operation) -> tuple[int, ...]:
    rank = tensor(op.inputs[0]).rank
    if op.name != "mean":
        return tuple(range(2, rank))
    dims = op.attributes.get("dim")
    if dims is None:
        raise Unfoldable(f"mean ({node.name}) mixes the channels")
    return tuple(sorted(d % rank for d in (dims if isinstance(dims, (tuple, list)) else (dims,))))


def _check_pool(
    model: Folding, node: fx.Node, op: Operation, source: fx.Node, m: Elementwise, axes: tuple[int, ...]
) -> None:
    if any(t.shape[a] != 1 for t in _pair(m) for a in axes):
        raise Unfoldable(f"{op.name} ({node.name}) mixes what the tuner treats differently")
    if _pool_of(op) == "max":
        if not bool((m.factor > 0).all()):
            raise Unfoldable(f"{node.name} takes the largest value, and its factor is not positive everywhere")
    elif bool(m.shift.any()):
        ones = _run(model, [node], {source: torch.ones(_one_channel(source, axes), dtype=torch.float64)})
        if not bool(((ones - 1).abs() < 1e-12).all()):
            raise Unfoldable(f"{node.name} averages zeros at the border, where the tuner's shift would be missing")


def _one_channel(source: fx.Node, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n if a in axes else 1 for a, n in enumerate(tensor(source).sizes(1)))


def _homogeneous(node: fx.Node, op: Operation, m: Elementwise) -> Elementwise:
    if bool(m.shift.any()) or not bool((m.factor > 0).all()):
        raise Unfoldable(f"{op.name} ({node.name}) is on the way, and only positive factors pass through it")
    return m


# --- what moves numbers about ---------------------------------------------------------------------------------------


def _indices(model: Folding, path: Sequence[fx.Node], source: fx.Node) -> torch.Tensor:
    """For every number that the path yields, the place in `source` that it comes from, from 1; 0 for a padded zero."""
    sizes = tensor(source).sizes(model.batch)
    index = torch.arange(1, torch.Size(sizes).numel() + 1, dtype=torch.float64).reshape(sizes)
    return _run(model, path, {source: index}).long()


def _moved_before(model: Folding, path: Sequence[fx.Node], source: fx.Node, after: Elementwise) -> Elementwise:
    index = _indices(model, path, source)
    padded = index == 0
    if bool(padded.any()) and bool(after.shift.any()):
        raise Unfoldable(f"{path[-1].name} pads with zeros, which the tuner's shift would change")
    found = []
    for t, rest in ((after.factor, 1.0), (after.shift, 0.0)):
        spread = t.expand(index.shape)
        flat = torch.full((torch.Size(tensor(source).sizes(model.batch)).numel(),), torch.nan, dtype=torch.float64)
        flat[index[~padded] - 1] = spread[~padded]
        if not torch.equal(flat[index[~padded] - 1], spread[~padded]):
            raise Unfoldable(f"{path[-1].name} repeats numbers that the tuner treats differently")
        whole = flat.reshape(tensor(source).sizes(model.batch))
        if bool(whole.isnan().any()):  # what the path does not see stays as it is
            whole = whole.nan_to_num(rest)
        found.append(compressed(whole))
    return Elementwise(*found)


def _moved_after(model: Folding, path: Sequence[fx.Node], source: fx.Node, before: Elementwise) -> Elementwise:
    sizes = tensor(source).sizes(model.batch)
    ones = torch.ones(sizes, dtype=torch.float64)
    factor = _run(model, path, {source: before.factor.expand(sizes)}, 1.0)
    shift = _run(model, path, {source: before.shift.expand(sizes)}, 0.0)
    padded = _run(model, path, {source: ones}, 1.0) == 0
    return Elementwise(compressed(factor.masked_fill(padded, torch.nan)).nan_to_num(1.0), compressed(shift))


def _mixed(model: Folding, path: Sequence[fx.Node], source: fx.Node, axis: int) -> tuple[int, torch.Tensor]:
    """Where an axis of the source is afterwards, and in which order.

    Raises:
        Unfoldable: it is no whole axis any more, or zeros were padded to other axes.
    """
    sizes = tensor(source).sizes(model.batch)
    generator = torch.Generator().manual_seed(0)
    labels = 1 + torch.rand(sizes[axis], generator=generator, dtype=torch.float64)  # an average of labels is none
    spread = labels.reshape([-1 if a == axis else 1 for a in range(len(sizes))]).expand(sizes)
    out = compressed(_run(model, path, {source: spread}))
    long = [a for a, n in enumerate(out.shape) if n > 1]
    if len(long) == 1 and out.shape[long[0]] == len(labels):
        distance, order = (out.flatten()[:, None] - labels).abs().min(1)
        if bool((distance < 1e-9).all()) and len(order.unique()) == len(labels):
            return long[0], order
    raise Unfoldable(f"{path[-1].name} is on the way, and takes the channels apart")


def _mixed_before(model: Folding, path: Sequence[fx.Node], source: fx.Node, after: Mixing) -> Mixing:
    sizes = tensor(source).sizes(model.batch)
    for axis, size in enumerate(sizes):
        if size != len(after.shift) or len(after.shift) == 1:
            continue
        try:
            moved, order = _mixed(model, path, source, axis)
        except Unfoldable:
            continue
        if moved == after.axis:
            matrix, shift = torch.empty_like(after.matrix), torch.empty_like(after.shift)
            matrix[order[:, None], order] = after.matrix
            shift[order] = after.shift
            return Mixing(axis, matrix, shift)
    raise Unfoldable(f"{path[-1].name} is on the way, and takes the channels apart")


def _mixed_after(model: Folding, path: Sequence[fx.Node], source: fx.Node, before: Mixing) -> Mixing:
    axis, order = _mixed(model, path, source, before.axis)
    return Mixing(axis, before.matrix[order][:, order], before.shift[order])


def _run(
    model: Folding, path: Sequence[fx.Node], known: dict[fx.Node, torch.Tensor], other: float | None = None
) -> torch.Tensor:
    """Run operations on stand-ins for the values they read; other tensors that they join are full of `other`."""
    found: dict[fx.Node, object] = dict(known)

    def lookup(node: fx.Node) -> object:
        if node in found:
            return found[node]
        if (size := info(node).size) is not None:
            return size.at(model.batch)
        if is_state(node):
            return model.evaluate(node)
        value = value_of(node)
        if value is None or other is None:
            raise Unfoldable(f"{path[-1].name} reads {node.name} too")
        return torch.full(value.sizes(model.batch), other, dtype=torch.float64)

    for node in path:
        op = operation(node, model.root)
        if op.name == "pad" and op.attributes.get("mode", "constant") == "constant" and op.attributes.get("value"):
            raise Unfoldable(f"{node.name} pads with a number that is not zero")
        found[node] = run_node(model.root, node, lookup, in_float64)
    result = found[path[-1]]
    assert isinstance(result, torch.Tensor)
    return result
