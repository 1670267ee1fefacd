"""Spelled-out operations that count as one before any rule matches.

1. Softmax attention: `matmul(softmax(scale · q kᵀ + mask), v)` is `sdpa(q, k, v)` at the last matmul.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from utcompile.graph.classes import is_layout
from utcompile.graph.operations import Operation

_BETWEEN_SCORES = frozenset(["add", "sub", "mul", "div", "masked_fill", "where", "to", "clamp"])
_BETWEEN_WEIGHTS = frozenset(["dropout", "to"])
_LONGEST = 8


def composites(nodes: Sequence[fx.Node], operations: Mapping[fx.Node, Operation]) -> dict[fx.Node, Operation]:
    """The operations to read at the nodes that end a composite."""
    found: dict[fx.Node, Operation] = {}
    for node in nodes:
        if operations[node].name == "softmax":
            attention = _attention(node, operations)
            if attention is not None:
                found[attention[0]] = attention[1]
    return found


def _attention(softmax: fx.Node, operations: Mapping[fx.Node, Operation]) -> tuple[fx.Node, Operation] | None:
    scores = _above(softmax, operations)
    weighted = _below(softmax, operations)
    if scores is None or weighted is None:
        return None
    q, k = operations[scores].inputs[:2]
    v = operations[weighted].inputs[1]
    return weighted, Operation("sdpa", (q, k, v), {"spelled_out": True})


def _above(softmax: fx.Node, operations: Mapping[fx.Node, Operation]) -> fx.Node | None:
    """The matmul of q and k, up through scales, masks and reshapes."""
    node = softmax
    for _ in range(_LONGEST):
        inputs = operations[node].inputs
        if not inputs:
            return None
        node = inputs[0]
        op = operations[node]
        if op.name == "matmul":
            return node if len(op.inputs) == 2 else None
        if op.name not in _BETWEEN_SCORES and not is_layout(node, op):
            return None
    return None


def _below(softmax: fx.Node, operations: Mapping[fx.Node, Operation]) -> fx.Node | None:
    """The matmul with v, down through dropout and reshapes."""
    node = softmax
    for _ in range(_LONGEST):
        readers = [u for u in node.users if operations[u].inputs]
        if len(readers) != 1:
            return None
        (node,), before = readers, node
        op = operations[node]
        if op.name == "matmul":
            return node if len(op.inputs) == 2 and op.inputs[0] is before else None
        if op.name not in _BETWEEN_WEIGHTS and not is_layout(node, op):
            return None
    return None
