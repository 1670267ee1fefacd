"""Where the channels of a value are, and how its other axes are arranged.

The axes of every value are followed through the graph as products of atoms (`axes`), so that windows, heads and
flattenings keep their parts. Convolutions, linears, norms and embeddings say which axis contains channels; the values
that are read say so too. An addition shows that two axes contain the same places.

What a claim means: let the output channels of the operations in `made_by` be permuted, all alike, in a way that keeps
the parts together into which the graph divides them (heads, groups, slices). Then exactly the axis `axis` of the value
is permuted. Where nothing of the kind is known, there is no layout. An operation whose row says nothing of axes makes
axes of which nothing is known; nothing is guessed from sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from torch import fx

from utcompile.graph.axes import Atom, Axis, Found, Origin, is_divided, resolved, whole
from utcompile.graph.flow import Flow
from utcompile.graph.flow_layers import LAYERS
from utcompile.graph.flow_moves import MOVES, part_of
from utcompile.graph.meta import value_of
from utcompile.graph.operations import Operation, is_state
from utcompile.ops import ROWS, Axes

_CARRIED: Mapping[Axes, Callable[..., Found]] = {**MOVES, **LAYERS}

KINDS: Mapping[str, str] = {
    "NCHW": "feature maps, (B, C, H, W)",
    "NHWC": "feature maps, channels last, (B, H, W, C)",
    "NCL": "sequences, channels first, or transposed tokens, (B, C, L)",
    "tokens": "sequences, channels last, (B, N, C); also called NLC",
    "NCDHW": "volumes or videos, (B, C, D, H, W)",
    "NDHWC": "the same, channels last, (B, D, H, W, C)",
    "LNC": "sequences, the batch second, (L, B, C)",
    "vectors": "one vector a sample, (B, C)",
    "windows": "space divided into windows, such as (B·H/7·W/7, 49, C)",
    "heads": "channels divided into heads, such as (B, heads, N, C/heads); the channel axis is that within a head",
    "groups": "channels of feature maps divided into groups, such as (B, groups, C/groups, H, W)",
}


@dataclass(frozen=True)
class Layout:
    """How a value's axes are arranged.

    Attributes:
        kind: one of `KINDS`; None for an arrangement that has no name.
        axis: the channel axis; where channels are divided among several, the innermost.
        axes: a name for each axis: `("B", "C", "H", "W")`, `("(B h w)", "(h w)", "C")`.
        made_by: the operations whose output channels these are; none for the channels of an input, and none
            where channels are added to others of another order (`x + x.flip(1)`).
    """

    kind: str | None
    axis: int
    axes: tuple[str, ...]
    made_by: Collection[fx.Node] = field(default=(), compare=False, repr=False)  # shared by all values of one stream

    def __str__(self) -> str:
        return " ".join(self.axes)


def layouts(
    nodes: Sequence[fx.Node], operations: Mapping[fx.Node, Operation], written: Callable[[fx.Node], Operation]
) -> dict[fx.Node, Layout | None]:
    """The layout of every tensor, None where it is unknown.

    Args:
        written: a node's own operation, where `operations` reads it as the end of a composite.
    """
    flow = Flow(operations, written)
    for node in nodes:
        visit(flow, node)
    return {n: _layout(_seen(n, flow.axes[n], operations[n])) if n in flow.axes else None for n in nodes}


def visit(flow: Flow, node: fx.Node) -> None:
    """Find the axes of a node's value; its inputs have theirs."""
    flow.position[node] = len(flow.position)
    value = value_of(node)
    if value is None or is_state(node):
        return
    sizes = [flow.size(s) for s in value.shape]
    op = flow.operations[node]
    if op.attributes.get("spelled_out"):
        op = flow.written(node)
    known = all(i in flow.axes for i in op.inputs) and not any(map(_is_empty, [node, *op.inputs]))
    carry = _CARRIED.get(ROWS[op.name].axes) if known and op.inputs and op.name in ROWS else None
    found = carry(flow, node, op, sizes) if carry else None
    if op.name == "getitem" and not op.inputs and not _is_empty(node) and isinstance(node.args[0], fx.Node):
        found = part_of(flow, node, node.args[0], sizes)
    if found is None or len(found) != len(sizes):
        found = [None] * len(sizes)
    flow.axes[node] = [
        axis if axis is not None and prod(a.size for a in axis) == size else flow.fresh(size, shape=dim)
        for axis, size, dim in zip(found, sizes, value.shape, strict=True)
    ]


def _is_empty(node: fx.Node) -> bool:
    """Whether a value has no elements: then no axis of it shows what another one is."""
    value = value_of(node)
    return value is not None and 0 in value.shape


def _seen(node: fx.Node, axes: list[Axis], op: Operation) -> list[Axis]:
    """The outputs of a linear are channels, also where a later addition shows that they are a mixer's tokens."""
    found = [resolved(a) for a in axes]
    if op.name == "linear" and all(a.origin.role != "channel" for a in found[-1]):
        found[-1] = axes[-1]
    return found


def _layout(axes: list[Axis]) -> Layout | None:
    parts: dict[Origin, list[tuple[int, Atom]]] = {}
    for i, axis in enumerate(axes):
        for atom in axis:
            parts.setdefault(atom.origin, []).append((i, atom))
    found: tuple[Origin, int] | None = None
    for origin, places in parts.items():
        if origin.role != "channel" or prod(a.size for _, a in places) != origin.size:
            continue  # a part of its channels is summed over, or is here twice
        if is_divided(origin, (a for _, a in places)):
            continue
        inner = min(places, key=lambda place: place[1].stride)
        if any(a.origin.role == "batch" for a in axes[inner[0]]):
            continue
        if found is None or origin.order > found[0].order:
            found = origin, inner[0]
    if found is None:
        return None
    origin, at = found
    names = tuple(_name(axis, origin) for axis in axes)
    return Layout(_kind(axes, origin, at, parts), at, names, origin.makers.keys())


def _kind(axes: list[Axis], channels: Origin, at: int, parts: Mapping[Origin, list[tuple[int, Atom]]]) -> str | None:
    rank = len(axes)
    others = [i for i in range(rank) if i != at]
    heads = [i for i in others if any(a.origin.role == "channel" for a in axes[i])]
    if any(_is_whole(axes[i]) for i in heads):
        return None  # a layer over tokens: the channels of the stream are there in addition to its own
    if heads:
        return "groups" if rank - at > 2 and all(i < at for i in heads) and rank > 4 else "heads"
    for origin, places in parts.items():
        if origin.role == "space" and len({i for i, _ in places if i != at}) > 1 and not _is_grid(origin, places):
            return "windows"
    if rank == 2:
        return "vectors" if at == 1 else None
    if rank == 3 and at == 2:
        batch = [any(a.origin.role == "batch" for a in axis) for axis in axes]
        return "LNC" if batch[1] and not batch[0] else "tokens"
    if any(len({a.origin for a in axes[i]}) > 1 for i in others if i > 0) and rank > 3:
        return None  # two of an image's sides on one axis, with others
    names = {(3, 1): "NCL", (4, 1): "NCHW", (4, 3): "NHWC", (5, 1): "NCDHW", (5, 4): "NDHWC"}
    return names.get((rank, at))


def _is_grid(origin: Origin, places: list[tuple[int, Atom]]) -> bool:
    """Whether positions of one axis are laid out as the rows and columns of an image, and no finer."""
    if origin.letter or len(places) > 3 or prod(a.size for _, a in places) != origin.size:
        return False
    rows = sorted(places, key=lambda place: -place[1].stride)
    return [i for i, _ in rows] == list(range(rows[0][0], rows[0][0] + len(rows)))


def _is_whole(axis: Axis) -> bool:
    return whole(axis) is not None


def _name(axis: Axis, channels: Origin) -> str:
    words = [_word(atom, channels) for atom in axis]
    return f"({' '.join(words)})" if len(words) > 1 else words[0] if words else "1"


def _word(atom: Atom, channels: Origin) -> str:
    origin = atom.origin
    if origin.role == "channel":
        if origin is not channels and atom.size == origin.size:
            return "K"
        if origin is not channels or atom.stride > 1:
            return "heads"
        letter = "C"
    else:
        letter = "B" if origin.role == "batch" else origin.letter or ("N" if origin.role == "space" else "?")
    return letter if atom.size == origin.size else letter.lower()
