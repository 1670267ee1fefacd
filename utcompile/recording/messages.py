"""Whether the code that runs makes the text of an assertion, an error, a warning or a line of a log.

Such text is made before it is known whether it is needed: `torch._assert(n == m, f"expected {m}, got {n}")`. It decides
nothing, so a size in it is no guard. All other text may: `int(str(n)[0])`, a key of a dictionary. The statement is read
off the source, by the position of the instruction that runs.
"""

from __future__ import annotations

import ast
import functools
import itertools
import linecache
import re
from collections.abc import Iterator
from types import FrameType

from utcompile.recording.source import own_frame

_SHOWN = re.compile(
    r"_?(print|pprint|log|debug|info|warn(ing)?(_once)?|error|exception|critical|\w+Error|\w+Warning|Exception)$"
)
# calls whose first argument may be the condition; those that check something stand alone, as statements
_CHECKS = re.compile(r"(\w*_)?(assert\w*|(check|verify|validate|require|ensure|expect)s?(_\w+)?)$")
_ERROR = re.compile(r"(\w+Error|\w+Warning|Exception)$")
_MODULES = ("logging", "warnings")


def in_message() -> bool:
    """Whether the innermost code of the model makes text that is only shown."""
    frame = own_frame()
    if frame is None:
        return False
    if frame.f_globals.get("__name__", "").partition(".")[0] in _MODULES:
        return True
    around = [None, *_around(frame), None]
    return any(_is_message(*three) for three in zip(around, around[1:], around[2:], strict=False))


def _is_message(statement: ast.AST | None, outer: ast.AST | None, inner: ast.AST | None) -> bool:
    """Whether a node of a syntax tree is the text of the node around it, which another one is around."""
    if isinstance(outer, ast.Raise):
        return True
    if isinstance(outer, ast.Assert):
        return inner is outer.msg
    if not isinstance(outer, ast.Call) or inner is outer.func:
        return False
    name = outer.func.attr if isinstance(outer.func, ast.Attribute) else getattr(outer.func, "id", "")
    if _SHOWN.match(name):
        return not _is_of_numbers(outer.func)
    checks = _ERROR.match(name) or (_CHECKS.match(name) and isinstance(statement, ast.Expr))
    return bool(checks) and inner not in (None, *outer.args[:1])


def _is_of_numbers(function: ast.AST) -> bool:
    """`math.log(n)` shows nothing."""
    owner = function.value if isinstance(function, ast.Attribute) else None
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name == "log" and (owner is None or getattr(owner, "id", "") in ("math", "np", "numpy", "torch", "cmath"))


def _around(frame: FrameType) -> Iterator[ast.AST]:
    """The nodes of the syntax tree around the instruction that runs, outermost first."""
    line, last, column, end = next(itertools.islice(frame.f_code.co_positions(), frame.f_lasti // 2, None))
    if line is None or last is None or column is None or end is None:
        return
    node: ast.AST | None = _tree(frame.f_code.co_filename)
    while node is not None:
        yield node
        node = next((c for c in ast.iter_child_nodes(node) if _holds(c, (line, column), (last, end))), None)


def _holds(node: ast.AST, first: tuple[int, int], last: tuple[int, int]) -> bool:
    if not isinstance(node, (ast.stmt, ast.expr, ast.excepthandler, ast.pattern)):
        return any(_holds(c, first, last) for c in ast.iter_child_nodes(node))
    return (node.lineno, node.col_offset) <= first and last <= (node.end_lineno or 0, node.end_col_offset or 0)


@functools.lru_cache(maxsize=64)
def _tree(file: str) -> ast.AST | None:
    try:
        return ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return None
