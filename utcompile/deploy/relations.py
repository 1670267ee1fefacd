"""Relations between sizes, as a file's metadata has them: read without running code from the file."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

_LONGEST = 500
_TWO: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def holds(relation: str, sizes: Mapping[str, int]) -> bool | None:
    """Whether a relation is true of sizes; None where it is about something else than sizes.

    >>> holds("length <= 16 or batch == 1", {"length": 20, "batch": 1}), holds("length % 8 == 0", {"length": 12})
    (True, False)
    >>> holds("x.requires_grad is False", {"length": 12}) is None
    True
    """
    try:
        tree = ast.parse(relation, mode="eval") if len(relation) <= _LONGEST else None
        return bool(_value(tree.body, sizes)) if tree is not None else None
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr, sizes: Mapping[str, int]) -> Any:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name) if name in sizes:
            return sizes[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, sizes)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, sizes)
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_value(v, sizes) for v in values)
        case ast.BoolOp(op=ast.Or(), values=values):
            return any(_value(v, sizes) for v in values)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _TWO:
            return _TWO[type(op)](_value(left, sizes), _value(right, sizes))
        case ast.Compare(left=first, ops=ops, comparators=others) if all(type(op) in _TWO for op in ops):
            values = [_value(v, sizes) for v in (first, *others)]
            return all(_TWO[type(op)](values[i], values[i + 1]) for i, op in enumerate(ops))
        case _:
            raise ValueError(f"{ast.dump(node)} is no relation between sizes")
