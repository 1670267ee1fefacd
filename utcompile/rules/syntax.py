"""Parsed patterns and comparisons as plain frozen data, shared by the parser and the matcher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Plain: TypeAlias = "str | int | float | bool | tuple[Plain, ...] | None"  # the value of a literal


@dataclass(frozen=True)
class Mark:
    """A place in a rule file; lines and columns count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Head:
    """One alternative of a call: an operation, an operation class, a named pattern, or `skip`."""

    name: str
    attributes: Mapping[str, Plain] = field(default_factory=dict, hash=False)  # schema name -> literal

    @property
    def is_skip(self) -> bool:
        return self.name == "skip"


@dataclass(frozen=True)
class Call:
    """`(a | b | skip)(x, …)`: ordered alternatives over one list of operands."""

    heads: tuple[Head, ...]
    arguments: tuple[Expression, ...]
    text: str  # as written, for messages


@dataclass(frozen=True)
class Path:
    """`path(x, through=conv | norm, max=6, min=1)`: some chain of `min` to `max` operations from `x`."""

    source: Expression
    through: tuple[Head, ...]
    max: int
    text: str
    min: int = 1


@dataclass(frozen=True)
class Name:
    """A reference to a value by its name."""

    name: str


Expression = Call | Path | Name


@dataclass(frozen=True)
class Step:
    """One line of a pattern, `y = op(x)`; several targets unpack several outputs."""

    targets: tuple[str, ...]
    value: Call | Path
    mark: Mark
    text: str


@dataclass(frozen=True)
class Spelling:
    """One way to write a pattern: its lines, anchored at the last."""

    steps: tuple[Step, ...]
    mark: Mark

    @property
    def names(self) -> frozenset[str]:
        """Every name that the pattern binds."""
        found: set[str] = set()

        def visit(expression: Expression) -> None:
            match expression:
                case Name(name):
                    found.add(name)
                case Call(arguments=arguments):
                    for argument in arguments:
                        visit(argument)
                case Path(source=source):
                    visit(source)

        for step in self.steps:
            found.update(step.targets)
            visit(step.value)
        return frozenset(found)


@dataclass(frozen=True)
class Pattern:
    """A named pattern: any of several spellings, tried in order; each offers the same names."""

    name: str
    spellings: tuple[Spelling, ...]

    @property
    def names(self) -> frozenset[str]:
        """The names that every spelling binds."""
        first, *rest = (s.names for s in self.spellings)
        return first.intersection(*rest)


@dataclass(frozen=True)
class Attribute:
    """`x.channels`, `h.op.groups`: an attribute of a capture in a `where:` comparison."""

    capture: str
    path: tuple[str, ...]


@dataclass(frozen=True)
class Product:
    """`4 * x.channels`: arithmetic of two operands in a `where:` comparison."""

    operator: str  # one of + - * //
    left: Operand
    right: Operand


@dataclass(frozen=True)
class Literal:
    """A number, string, boolean, None or tuple of them."""

    value: Plain


Operand = Attribute | Product | Literal


@dataclass(frozen=True)
class Comparison:
    """One line of `where:`: `left (operator right)+`, chained as in Python."""

    operands: tuple[Operand, ...]
    operators: tuple[str, ...]  # == != < <= > >= in, not in
    text: str
    mark: Mark
