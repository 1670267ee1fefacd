"""`where:`, `inside:` and `not_inside:` over one set of bindings."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from itertools import takewhile

from torch import fx

from utcompile.errors import UtcError
from utcompile.graph import Frame, GraphView, Size, place_of, readers, tensor
from utcompile.matching.engine import Bindings
from utcompile.rules import Attribute, Comparison, Literal, Operand, Scope, glob_match

_COMPARE: dict[str, Callable[..., bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda a, b: a in b,
    "not in": lambda a, b: a not in b,
}
_ARITHMETIC: dict[str, Callable[..., object]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
}
_BATCHES = (2, 3, 5)


def failing(comparisons: Sequence[Comparison], env: Bindings, view: GraphView) -> tuple[Comparison, str] | None:
    """The first comparison that is false, with the values of both sides; None where all are true."""
    for comparison in comparisons:
        values = [_evaluate(o, env, view, comparison) for o in comparison.operands]
        for i, name in enumerate(comparison.operators):
            try:
                holds = _holds(name, values[i], values[i + 1])
            except TypeError as error:
                raise UtcError(
                    f"'{comparison.text}' compares {values[i]!r} with {values[i + 1]!r}",
                    where=str(comparison.mark),
                    why=str(error),
                ) from None
            if not holds:
                return comparison, f"{_shown(values[i])} {name} {_shown(values[i + 1])} is false"
    return None


def _holds(name: str, left: object, right: object) -> bool:
    """Sizes that vary with the batch compare at every recorded batch."""
    if left is None or right is None:
        return bool(_COMPARE[name](left, right)) if name in ("==", "!=", "in", "not in") else False
    if isinstance(left, Size) or isinstance(right, Size):
        return all(_COMPARE[name](_at(left, b), _at(right, b)) for b in _BATCHES)
    return bool(_COMPARE[name](left, right))


def _at(value: object, batch: int) -> object:
    return value.at(batch) if isinstance(value, Size) else value


def _shown(value: object) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def _evaluate(operand: Operand, env: Bindings, view: GraphView, comparison: Comparison) -> object:
    if isinstance(operand, Literal):
        return tuple(operand.value) if isinstance(operand.value, list) else operand.value
    if isinstance(operand, Attribute):
        return _attribute(env[operand.capture], operand.path, view)
    left, right = (_evaluate(o, env, view, comparison) for o in (operand.left, operand.right))
    if isinstance(left, Size) or isinstance(right, Size):
        raise UtcError(
            f"'{comparison.text}' computes with a size that varies with the batch", where=str(comparison.mark)
        )
    if left is None or right is None:
        return None
    return _ARITHMETIC[operand.operator](left, right)


def _attribute(node: fx.Node, path: tuple[str, ...], view: GraphView) -> object:
    name = path[0]
    if name == "op":
        op = view.operations[view.without_layout(node)]
        found = op.name if path[1:] == ("name",) else op.attributes.get(path[1], op.parameters.get(path[1]))
        return tuple(found) if isinstance(found, list) else found
    simple: dict[str, Callable[[], object]] = {
        "shape": lambda: tensor(node).shape,
        "rank": lambda: tensor(node).rank,
        "channels": lambda: view.channels(node),
        "layout": lambda: layout.kind if (layout := view.layouts.get(node)) else None,
        "dtype": lambda: str(tensor(node).dtype).removeprefix("torch."),
        "path": lambda: place_of(node),
        "index": lambda: view.position[node],
        "users": lambda: len(readers(node)),
    }
    return simple[name]()


def enclosing(nodes: Sequence[fx.Node], view: GraphView) -> tuple[Frame, ...]:
    """The module calls that enclose all of the nodes, outermost first."""
    first, *others = [view.frames(n) for n in dict.fromkeys(nodes)]
    for frames in others:
        first = tuple(a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(first, frames, strict=False)))
    return first


def within(scope: Scope, frames: Sequence[Frame]) -> bool:
    """Whether one enclosing call matches both globs of a scope."""
    return any(
        (scope.module is None or glob_match(scope.module, f.path))
        and (scope.cls is None or glob_match(scope.cls, f.cls))
        for f in frames
    )
