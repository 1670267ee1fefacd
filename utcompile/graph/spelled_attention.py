"""Softmax attention that a model spells out: `softmax(scale · q kᵀ + mask) v`, by matmul, bmm, baddbmm or einsum.

The scores may be scaled, masked, biased and mixed between heads (CaiT) before the softmax, and the weights
dropped, cast and mixed after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import fx

from utcompile.graph.classes import is_layout
from utcompile.graph.meta import value_of
from utcompile.graph.operations import Operation
from utcompile.ops import Trait, having

_Operations = Mapping[fx.Node, Operation]
_MIXED = Trait.OUTPUTS_FIRST  # a linear or a convolution over the heads
_SCORES = having(Trait.ARITHMETIC | Trait.MASKS | Trait.SATURATES | Trait.SAME | Trait.DROPOUT | Trait.JOINS | _MIXED)
_WEIGHTS = having(Trait.ARITHMETIC | Trait.MASKS | Trait.SAME | Trait.DROPOUT | Trait.AFFINE | _MIXED)
_LONGEST = 10
_WIDEST = 24  # nodes looked at above one softmax


def spelled_attention(softmax: fx.Node, operations: _Operations) -> tuple[fx.Node, Operation] | None:
    """The product with v that ends the attention around a softmax, and how it reads; None where there is none."""
    weighted = _below(softmax, operations)
    if weighted is None:
        return None
    scores = _above(softmax, operations)
    if scores is None:
        return None
    before, product = weighted
    q, k = operations[scores].inputs[-2:]
    v = next(n for n in operations[product].inputs if n is not before)
    return product, Operation("sdpa", (q, k, v), {"spelled_out": True}, {}, {"query": q, "key": k, "value": v})


def _is_product(op: Operation) -> bool:
    """A product of two tensors; `baddbmm(bias, q, k)` reads the bias first."""
    wanted = 3 if op.name == "baddbmm" else 2
    return op.name in ("matmul", "einsum", "baddbmm") and wanted >= len(op.inputs) >= 2


def _above(softmax: fx.Node, operations: _Operations) -> fx.Node | None:
    """The product of q and k, up through scales, masks and reshapes; the nearest."""
    frontier, seen = [softmax], {softmax}
    for _ in range(_LONGEST):
        following: list[fx.Node] = []
        for node in frontier:
            for source in _read(node, operations):
                if source in seen or len(seen) > _WIDEST:
                    continue
                seen.add(source)
                op = operations[source]
                if _is_product(op):
                    return source
                if op.name in _SCORES or op.name == "max" or is_layout(source, op):
                    following.append(source)
        frontier = following
    return None


def _read(node: fx.Node, operations: _Operations) -> Iterator[fx.Node]:
    """The value that a node reads; for a part of a split, the value that is split."""
    op = operations[node]
    if op.name == "getitem" and not op.inputs and isinstance(node.args[0], fx.Node):
        op = operations[node.args[0]]
    yield from (n for n in op.inputs if (v := value_of(n)) is not None and v.dtype.is_floating_point)


def _below(softmax: fx.Node, operations: _Operations) -> tuple[fx.Node, fx.Node] | None:
    """The product with v, down through dropout and reshapes, and the weights it reads."""
    node = softmax
    for _ in range(_LONGEST):
        readers = [u for u in node.users if operations[u].inputs]
        if len(readers) != 1:
            return None
        (node,), before = readers, node
        op = operations[node]
        if op.name in ("matmul", "einsum"):
            return (before, node) if len(op.inputs) == 2 and op.inputs[0] is not op.inputs[1] else None
        if len(op.inputs) > 1 or (op.name not in _WEIGHTS and not is_layout(node, op)):
            return None
    return None
