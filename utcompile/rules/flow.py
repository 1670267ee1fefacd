"""The checks of a pattern's names: each is bound once, before its use, and is reached from the last line."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from utcompile.errors import UtcError
from utcompile.rules.syntax import Call, Expression, Head, Mark, Name, Path, Step


@dataclass(frozen=True)
class Occurrence:
    """A name where it is bound or read, and the index of the step that does so."""

    name: str
    mark: Mark
    step: int


def names_in(expression: Expression) -> Iterator[str]:
    """The names that an expression reads, in the order of the text."""
    match expression:
        case Name(name):
            yield name
        case Call(arguments=arguments):
            for argument in arguments:
                yield from names_in(argument)
        case Path(source=source):
            yield from names_in(source)


def heads_in(expression: Expression) -> Iterator[Head]:
    """The operations that an expression names, with those of nested calls."""
    match expression:
        case Call(heads=heads, arguments=arguments):
            yield from heads
            for argument in arguments:
                yield from heads_in(argument)
        case Path(source=source, through=through):
            yield from through
            yield from heads_in(source)


def check_flow(
    steps: Sequence[Step], bindings: Sequence[Occurrence], uses: Sequence[Occurrence], known: Collection[str]
) -> None:
    """Raise where a name is bound twice, read before it is bound, or never reached from the last line.

    Args:
        steps: the lines of a pattern.
        bindings: every name that is bound.
        uses: every name that is read.
        known: names of operations, which no input may have.
    """
    bound = _check_single_assignment(bindings)
    for use in uses:
        if use.name in bound:
            _check_order(use, bound[use.name])
        elif use.name in known:
            what = f"'{use.name}' is an operation, and a value is needed here"
            raise UtcError(what, where=str(use.mark), fix=f"call it: {use.name}(x)")
    _check_all_reached(steps)
    if all(_may_be_skipped(step.value) for step in steps):
        why = "every line of the pattern may be skipped"
        raise UtcError("this pattern would match anything", where=str(steps[-1].mark), why=why)


def _check_single_assignment(bindings: Sequence[Occurrence]) -> dict[str, Occurrence]:
    bound: dict[str, Occurrence] = {}
    for binding in bindings:
        if first := bound.get(binding.name):
            raise UtcError(
                f"'{binding.name}' is bound twice",
                where=str(binding.mark),
                why=f"line {first.mark.line} binds the name too, and a name has one value",
                fix="give this value another name",
            )
        bound[binding.name] = binding
    return bound


def _check_order(use: Occurrence, binding: Occurrence) -> None:
    if binding.step < use.step:
        return
    if binding.step == use.step:
        why, fix = "the same line binds the name", "give the operand or the result another name"
    else:
        why, fix = f"line {binding.mark.line} binds the name", "move that line up"
    raise UtcError(f"'{use.name}' is used before it is bound", where=str(use.mark), why=why, fix=fix)


def _check_all_reached(steps: Sequence[Step]) -> None:
    needed = set(names_in(steps[-1].value))
    for step in reversed(steps[:-1]):
        if needed.isdisjoint(step.targets):
            names = ", ".join(f"'{name}'" for name in step.targets)
            raise UtcError(
                f"the last line never reaches {names}",
                where=str(step.mark),
                why="a pattern is anchored at its last line, and follows the values that this line reads",
                fix="use the name in a later line, or remove this line",
            )
        needed.update(names_in(step.value))


def _may_be_skipped(expression: Expression) -> bool:
    match expression:
        case Call(heads=heads, arguments=arguments):
            return heads[-1].is_skip and all(_may_be_skipped(argument) for argument in arguments)
        case Path(source=source, min=least):
            return least == 0 and _may_be_skipped(source)
    return True
