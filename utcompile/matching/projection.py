"""How a stream becomes the keys and values of an attention: its frozen norm and projections, and their channels.

Prompts are tokens of the stream, so they pass the same norm and projections. Sizes that are written into the recorded
reshapes (197 tokens) do not hold for them; so the layout between a projection and attention is not run again but read
off once, as an index: channel `index[h][c]` of the projection is channel c of head h.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from utcompile.errors import UtcError
from utcompile.graph import GraphView, describe, run_node, tensor, value_of
from utcompile.matching.tokens import Attention
from utcompile.ops import Trait, having

Index = tuple[tuple[int, ...], ...]
_MOVES = having(Trait.CUTS)


@dataclass(frozen=True)
class Projection:
    """The way from a stream to keys and values.

    Attributes:
        stream: `(B, N, C)`, what the norm reads; where there is no norm, what the projections read.
        norm: the norm's node, or None.
        key, value: the nodes of the linears that make keys and values; one node where they are packed.
        key_index, value_index: `heads × channels`, a channel of the linear's result each.
    """

    stream: fx.Node
    norm: fx.Node | None
    key: fx.Node
    value: fx.Node
    key_index: Index
    value_index: Index


def projection_of(attention: Attention, view: GraphView) -> Projection:
    """The frozen way from the stream to an attention's keys and values.

    Raises:
        UtcError: another operation than layout is between projections and attention (a rotary embedding, whose angle
            depends on a position that prompts do not have), or keys and values are read from two streams.
    """
    key, key_index = _linear(attention.key, attention.keys.rank, attention.softmax is not None, view)
    value, value_index = _linear(attention.value, attention.keys.rank, False, view)
    reads = [view.without_layout(view.operations[n].inputs[0]) for n in (key, value)]
    if reads[0] is not reads[1]:
        raise UtcError(f"keys and values of {describe(attention.node)} are read from two streams", fix="use a prefix")
    norm = reads[0] if "norm" in view.classes[reads[0]] else None
    stream = view.operations[norm].inputs[0] if norm is not None else reads[0]
    if norm is not None and stream not in norm.all_input_nodes:
        raise UtcError(f"the norm {describe(norm)} is spelled out, and prompts cannot pass it", fix="use a prefix")
    return Projection(stream, norm, key, value, key_index, value_index)


def _linear(operand: fx.Node, rank: int, transposed: bool, view: GraphView) -> tuple[fx.Node, Index]:
    node = operand
    while view.operations[node].name != "linear":
        op = view.operations[node]
        if "layout" not in view.classes[node] and op.name not in _MOVES:
            raise UtcError(
                f"prompts have no place at {describe(operand)}",
                why=f"{op.name} is between the projection and attention",
                fix="use a prefix, which learns keys and values as attention reads them",
            )
        node = node.args[0] if op.name in _MOVES else op.inputs[0]  # type: ignore[assignment]
    found = _moved(operand, node, view)
    if found.dim() != 4 or rank != 4:
        raise UtcError(f"the heads of {describe(operand)} have no separate axis", fix="use a prefix")
    if transposed:
        found = found.mT
    if not bool((found == found[:1, :, :1]).all()):
        raise UtcError(f"tokens and channels of {describe(operand)} are mixed", fix="use a prefix")
    return node, tuple(tuple(row) for row in found[0, :, 0].tolist())


def _moved(operand: fx.Node, source: fx.Node, view: GraphView) -> torch.Tensor:
    """The numbers of the channels as the layout operations move them, at batch 2."""
    sizes = tensor(source).sizes(2)
    known: dict[fx.Node, object] = {source: torch.arange(sizes[-1]).expand(sizes)}

    def run(node: fx.Node) -> object:
        if node not in known:
            value = value_of(node)
            moves = "layout" in view.classes[node] or view.operations[node].name in _MOVES
            if value is not None and not moves:  # only its size is needed
                known[node] = torch.empty(value.sizes(2), device="meta")
            else:
                known[node] = run_node(view.module, node, run)
        return known[node]

    found = run(operand)
    assert isinstance(found, torch.Tensor)
    return found
