"""Text to Python's syntax tree, never evaluated; shared by patterns and `where:` lines."""

from __future__ import annotations

import ast
import math
import re
import warnings
from typing import Literal

from utcompile.errors import UtcError
from utcompile.rules.passage import Passage, short
from utcompile.rules.syntax import Mark, Plain

MAX_CHARACTERS = 8_000
MAX_NESTING = 30
MAX_WORD = 64


def check_length(passage: Passage) -> None:
    """Refuse a text that is longer than any pattern or comparison needs to be."""
    if len(passage.text) > MAX_CHARACTERS:
        raise UtcError(
            f"a text of more than {MAX_CHARACTERS:,} characters", where=str(passage.start), code="rule/too-large"
        )


class Text:
    """One piece of Python-like text: its syntax tree, and the place in the rule file of each node of it.

    Example:
        >>> text = Text(Passage.plain("x.rank == 4", Mark("r.yaml", 7, 9)), "eval", what="comparison")
        >>> str(text.mark(text.expression.comparators[0]))
        'r.yaml:7:19'
    """

    def __init__(self, passage: Passage, mode: Literal["exec", "eval"], *, what: str, fix: str | None = None) -> None:
        self.passage, self.what = passage, what
        self.lines = passage.text.split("\n")
        self.starts = [0]
        for line in self.lines[:-1]:
            self.starts.append(self.starts[-1] + len(line) + 1)
        check_length(passage)
        if long := re.search(rf"\w{{{MAX_WORD + 1},}}", passage.text):  # every message about a word is then short
            raise UtcError(
                f"a word of more than {MAX_WORD} characters",
                where=str(passage.mark(long.start())),
                code="rule/too-large",
            )
        self._tree = self._parse(mode, fix)

    @property
    def statements(self) -> list[ast.stmt]:
        """The statements of a text that was read as `exec`."""
        assert isinstance(self._tree, ast.Module)
        return self._tree.body

    @property
    def expression(self) -> ast.expr:
        """The expression of a text that was read as `eval`."""
        assert isinstance(self._tree, ast.Expression)
        return self._tree.body

    def _parse(self, mode: str, fix: str | None) -> ast.AST:
        problem = f"this is not a {self.what}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "error"
                )  # a doubtful escape or number is an error here, in every version of Python
                # At a mistake Python reads the line from the file of this name, which must therefore never exist.
                return ast.parse(self.passage.text, filename="", mode=mode)
        except SyntaxError as error:
            line = min(max((error.lineno or 1) - 1, 0), len(self.lines) - 1)
            offset = self.starts[line] + min(max((error.offset or 1) - 1, 0), len(self.lines[line]))
            raise self._problem(problem, self.passage.mark(offset), error.msg, fix) from None
        except (RecursionError, MemoryError):  # raised by Python's parser for deep nesting
            raise self._problem(problem, self.passage.start, "it is nested too deeply", fix) from None
        except ValueError as error:
            raise self._problem(problem, self.passage.start, str(error), fix) from None

    def _problem(self, problem: str, mark: Mark, why: str | None, fix: str | None) -> UtcError:
        if self.what == "comparison":
            return UtcError(problem, where=str(mark), why=why, fix=fix, code="rule/where")
        return UtcError(problem, where=str(mark), why=why, fix=fix, code="rule/pattern")

    def offset(self, line: int, column: int) -> int:
        """The offset in the text of a place that `ast` gives: lines from 1, columns in bytes of UTF-8."""
        row = min(line - 1, len(self.lines) - 1)
        text = self.lines[row]
        characters = column if text.isascii() else len(text.encode()[:column].decode("utf-8", "ignore"))
        return self.starts[row] + characters

    def mark(self, node: ast.AST) -> Mark:
        """Where a node begins."""
        return self.passage.mark(self.offset(node.lineno, node.col_offset))  # type: ignore[attr-defined]

    def of(self, node: ast.AST) -> str:
        """A node as it is written, on one line."""
        start = self.offset(node.lineno, node.col_offset)  # type: ignore[attr-defined]
        stop = self.offset(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]
        return " ".join(self.passage.text[start:stop].split())

    def shown(self, node: ast.AST) -> str:
        """A node as it is written, cut for a message."""
        return short(self.of(node), 60)

    def error(self, node: ast.AST, what: str, *, why: str | None = None, fix: str | None = None) -> UtcError:
        """An error at a node."""
        return self._problem(what, self.mark(node), why, fix)

    def check_nesting(self, node: ast.AST, depth: int) -> None:
        """Refuse an expression that is nested too deeply."""
        if depth > MAX_NESTING:
            raise self.error(node, f"nested deeper than {MAX_NESTING} levels", fix="give the inner parts names")

    def literal(self, node: ast.expr, depth: int = 0) -> Plain:
        """A number, text, boolean, None, or a tuple of them (a list becomes a tuple).

        Raises:
            UtcError: at any other expression.
        """
        self.check_nesting(node, depth)
        match node:
            case ast.Constant(value=(bool() | int() | str() | None) as plain):
                return plain
            case ast.Constant(value=float(value)) if math.isfinite(value):
                return value
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant(value=int() | float() as value)) if (
                not isinstance(value, bool) and math.isfinite(value)
            ):
                return -value if isinstance(node.op, ast.USub) else value
            case ast.Tuple(elts=items) | ast.List(elts=items):
                return tuple(self.literal(item, depth + 1) for item in items)
        fix = f"put a word in quotes: '{node.id}'" if isinstance(node, ast.Name) else None
        why = "a literal is a number, a text in quotes, True, False, None, or a tuple of them"
        raise self.error(node, f"{self.shown(node)!r} is not a literal", why=why, fix=fix)
