"""Floating-point operations of a node at one sample: two for each multiply-add, one for each element otherwise."""

from __future__ import annotations

from math import prod

from torch import fx

from utcompile.graph.meta import value_of
from utcompile.graph.node_info import info
from utcompile.graph.operations import Operation
from utcompile.ops import ROWS, Axes, Trait, having

# an operation that moves numbers, or reads a row of a table, computes nothing
_FREE = having(Trait.SAME | Trait.DROPOUT | Trait.MOVES | Trait.PADS | Trait.CUTS | Trait.JOINS)
_LOOKUPS = having(Axes.EMBEDDING)
_NO_CALLS = ("placeholder", "output", "get_attr")
_CONVS = having(Trait.CONV)
_CONVS_TRANSPOSED = having(Trait.CONV_TRANSPOSE)


def flops(node: fx.Node, op: Operation, batch: int = 1) -> int:
    """The number of floating-point operations of a node.

    Args:
        node: a node with its value.
        op: its operation.
        batch: the batch size; other sizes that vary are the example's.

    Example:
        >>> import torch, utcompile as utc
        >>> from utcompile.graph import GraphView, flops
        >>> captured = utc.capture(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()), torch.randn(2, 4))
        >>> view = GraphView(captured.graph, captured)
        >>> {n.name: flops(n, view.operations[n]) for n in view.nodes if n.op == "call_module"}
        {'_0': 64, '_1': 8}
    """
    value = value_of(node)
    if value is None or op.name in _FREE or op.name in _LOOKUPS or node.op in _NO_CALLS:
        return 0
    made = prod(value.sizes(batch))
    row = ROWS.get(op.name)
    if row is not None and row.flops is not None:
        read = [tuple(v.sizes(batch)) for i in node.all_input_nodes if (v := value_of(i)) is not None]
        return row.flops(read, tuple(value.sizes(batch)))
    weight = info(node).weight_shape
    if op.name == "linear" and weight:
        return 2 * made * weight[-1]
    if op.name in _CONVS and weight:
        return 2 * made * prod(weight[1:])
    sizes = [prod(v.sizes(batch)) for i in op.inputs if (v := value_of(i)) is not None]
    if op.name in _CONVS_TRANSPOSED and weight:
        return 2 * sizes[0] * prod(weight[1:])
    spelled_out = op.name == "sdpa" and getattr(node.target, "__name__", "") != "scaled_dot_product_attention"
    if op.name == "matmul" or spelled_out:  # the whole attention is counted at the last product of a spelled-out one
        first = value_of(node.all_input_nodes[0])
        return 2 * made * first.sizes(batch)[-1] if first is not None and first.rank else 0
    if op.name == "sdpa" and len(op.inputs) >= 2:
        key = value_of(op.inputs[1])
        return 4 * sizes[0] * key.sizes(batch)[-2] if key is not None and key.rank > 1 else 0
    if op.name == "einsum":
        return 2 * _einsum(node, op, batch)
    return made


def _einsum(node: fx.Node, op: Operation, batch: int) -> int:
    """The product of all its indices' sizes."""
    equation = op.attributes.get("equation")
    extents: dict[str, int] = {}
    operands = [n for n in node.all_input_nodes if value_of(n) is not None]
    if not isinstance(equation, str) or "..." in equation:
        value = value_of(node)
        return prod(value.sizes(batch)) if value is not None else 0
    for letters, operand in zip(equation.split("->")[0].split(","), operands, strict=False):
        value = value_of(operand)
        if value is not None:
            extents.update(zip(letters.strip(), value.sizes(batch), strict=False))
    return prod(extents.values())
