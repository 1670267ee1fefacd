"""The built-in named patterns, and the checks that all named patterns must pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path as FilePath
from types import MappingProxyType

from utcompile.errors import UtcError
from utcompile.rules.flow import heads_in
from utcompile.rules.names import CALLABLE, RESERVED
from utcompile.rules.passage import Passage
from utcompile.rules.pattern import parse_pattern
from utcompile.rules.syntax import Mark, Pattern
from utcompile.rules.yaml12 import Node, load

_FILE = FilePath(__file__).with_name("patterns.yaml")


@cache
def library_patterns() -> Mapping[str, Pattern]:
    """The built-in named patterns, read from `patterns.yaml` once.

    Example:
        >>> sorted(library_patterns()["ffn"].names)
        ['a', 'b', 'c', 'h', 'n', 'x', 'y']
    """
    root = load(_FILE.read_bytes(), _FILE.name)
    texts = {name: passages(node) for name, node in root.entries().items()}
    return MappingProxyType(parse_library(texts, root.keys, {}))


def passages(node: Node) -> tuple[Passage, ...]:
    """The spellings of a pattern: one text, or a list of them."""
    return tuple(item.passage for item in node.listed())


def parse_library(
    texts: Mapping[str, tuple[Passage, ...]], marks: Mapping[str, Mark], others: Mapping[str, Pattern]
) -> dict[str, Pattern]:
    """Parse named patterns that may call one another, and `others`.

    Args:
        texts: the spellings of each pattern.
        marks: the place of each name.
        others: the patterns that are known already.

    Raises:
        UtcError: a name is taken, a pattern calls itself, or a called pattern lacks `x` or `y`.
    """
    for name in texts:
        taken = "an operation or a word of the language" if name in RESERVED else "a built-in pattern"
        if name in RESERVED or name in others:
            raise UtcError(
                f"the name '{name}' is taken", where=str(marks[name]), why=f"it is {taken}", fix="choose another"
            )
        if not name.isidentifier():
            fix = "use letters, digits and _, for patterns are called by name"
            raise UtcError(f"'{name}' cannot be the name of a pattern", where=str(marks[name]), fix=fix)
    named = {*texts, *others}
    patterns = {name: parse_pattern(name, spellings, CALLABLE, named) for name, spellings in texts.items()}
    _refuse_cycles(patterns, marks)
    for pattern in patterns.values():
        check_calls(pattern, {**others, **patterns})
    return patterns


def calls_of(pattern: Pattern, named: Iterable[str]) -> dict[str, Mark]:
    """The named patterns that a pattern calls, each with the line of its first call."""
    found: dict[str, Mark] = {}
    known = frozenset(named)
    for spelling in pattern.spellings:
        for step in spelling.steps:
            for head in heads_in(step.value):
                if head.name in known:
                    found.setdefault(head.name, step.mark)
    return found


def check_calls(pattern: Pattern, named: Mapping[str, Pattern]) -> None:
    """Refuse a call of a pattern that has no `x` for its operand or no `y` for its result."""
    for name, mark in calls_of(pattern, named).items():
        if missing := sorted({"x", "y"} - named[name].names):
            why = f"it binds no {' and no '.join(missing)}; the operand of a call becomes x, and its result is y"
            raise UtcError(f"the pattern '{name}' cannot be called", where=str(mark), why=why)


def _refuse_cycles(patterns: Mapping[str, Pattern], marks: Mapping[str, Mark]) -> None:
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            cycle = " → ".join((*trail[trail.index(name) :], name))
            raise UtcError(f"the pattern '{name}' calls itself", where=str(marks[name]), why=cycle)
        if name not in done:
            for called in calls_of(patterns[name], patterns):
                visit(called, (*trail, name))
            done.add(name)

    for name in patterns:
        visit(name, ())
