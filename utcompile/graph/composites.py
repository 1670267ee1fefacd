"""Spelled-out operations that count as one before any rule matches, each read at the node that ends it.

1. Norms (`spelled_norms`): RMSNorm as Llama writes it, LayerNorm by mean and variance.
2. Activations (`spelled_activations`): `x * sigmoid(x)` is `silu`, the tanh form of GELU is `gelu`.
3. Softmax attention (`spelled_attention`): `matmul(softmax(scale · q kᵀ + mask), v)` is `sdpa(q, k, v)`.
4. Patch merging: reshape, permute, reshape that moves blocks of positions into channels is `pixel_unshuffle`.

The nodes inside a composite keep their own operations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from torch import fx, nn

from utcompile.graph.meta import value_of
from utcompile.graph.operations import Operation
from utcompile.graph.spelled_activations import SpelledActivations
from utcompile.graph.spelled_attention import spelled_attention
from utcompile.graph.spelled_norms import spelled_norm


def composites(
    nodes: Sequence[fx.Node], operations: Mapping[fx.Node, Operation], module: nn.Module
) -> dict[fx.Node, Operation]:
    """The operations to read at the nodes that end a composite.

    Args:
        nodes: a graph's nodes, in order.
        operations: how each of them reads alone.
        module: the module that the nodes' targets refer to.
    """
    found: dict[fx.Node, Operation] = {}
    activation = SpelledActivations(operations, module)
    for node in nodes:
        name = operations[node].name
        if name in ("mean", "var"):
            ended = spelled_norm(node, operations)
        elif name == "softmax":
            ended = spelled_attention(node, operations)
        elif name in SpelledActivations.anchors:
            ended = activation.at(node)
        elif name in ("permute", "transpose"):
            ended = _merged(node, operations)
        else:
            continue
        if ended is not None:
            found[ended[0]] = ended[1]
    return found


def _merged(permute: fx.Node, operations: Mapping[fx.Node, Operation]) -> tuple[fx.Node, Operation] | None:
    """`(B, H·r, W·r, C)` to `(B, H, W, r·r·C)`, with the channels last or first: as Swin merges patches."""
    above = operations[permute].inputs[0] if operations[permute].inputs else None
    below = _only_reader(permute)
    if above is None or below is None or operations[above].name != "reshape" or not operations[above].inputs:
        return None
    while operations[below].name == "contiguous" and (following := _only_reader(below)) is not None:
        below = following
    values = [value_of(n) for n in (operations[above].inputs[0], above, permute, below)]
    if operations[below].name != "reshape" or any(v is None for v in values):
        return None
    before, split, _, after = (v.sizes(2) for v in values if v is not None)
    if len(before) != 4 or len(split) != 6 or len(after) not in (3, 4) or prod(before) != prod(after):
        return None
    for channels, blocks in ((3, (2, 4)), (1, (3, 5))):  # (B, H, r, W, r, C) and (B, C, H, r, W, r)
        factor = split[blocks[0]]
        merged = after[1 if len(after) == 4 and channels == 1 else -1]
        if factor > 1 and factor == split[blocks[1]] and merged == before[channels] * factor * factor:
            attributes = {"downscale_factor": factor, "spelled_out": True}
            return below, Operation("pixel_unshuffle", (operations[above].inputs[0],), attributes)
    return None


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
