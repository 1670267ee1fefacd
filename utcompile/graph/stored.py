"""Values that are made of parameters and buffers alone; of an input only its dtype, device or sizes are read."""

from __future__ import annotations

from torch import fx

from utcompile.graph.meta import value_of
from utcompile.graph.walk import ancestors


def is_stored(node: fx.Node) -> bool:
    """Whether a value is made of parameters and buffers alone, as `weight.to(x.dtype) * scale` is."""
    stack, seen, read = [node], {node}, False
    while stack:
        found = stack.pop()
        read |= found.op == "get_attr"
        if found.op == "placeholder":
            return False
        for operand in found.all_input_nodes:
            if operand not in seen and (value_of(operand) is not None or operand.op == "get_attr"):
                seen.add(operand)
                stack.append(operand)
    return read


def stored_in(node: fx.Node) -> list[fx.Node]:
    """The nodes that read the parameters and buffers of which a value is made, in the order in which they are met."""
    return [n for n in ancestors([node]) if n.op == "get_attr"]
