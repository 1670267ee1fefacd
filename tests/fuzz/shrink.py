"""A failing program made small: what can be left out is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from .program import Expr, Program, Statement

_CONSTANTS = tuple(Expr(str(v)) for v in (1, 2, 3))


def shrink(program: Program, fails: Callable[[Program], bool], tries: int = 300) -> Program:
    """The smallest program found that still fails.

    Args:
        fails: whether a program fails in the same way.
        tries: the most programs to try.
    """
    changed = True
    while changed and tries > 0:
        changed = False
        for smaller in _smaller(program):
            tries -= 1
            if tries < 0:
                break
            if fails(smaller):
                program, changed = smaller, True
                break
    return program


def _smaller(program: Program) -> Iterator[Program]:
    """Programs with one thing less, the largest steps first."""
    if len(program.calls) > 1:
        yield from (replace(program, calls=(sequence,)) for sequence in program.calls)
    elif program.calls and len(program.calls[0]) > 1:
        yield from (replace(program, calls=((call,),)) for call in program.calls[0])
    yield from (replace(program, body=body) for body in _bodies(program.body))
    yield from (replace(program, inner=body) for body in _bodies(program.inner))
    if program.returns != "h":
        yield replace(program, returns="h")
    for i in range(len(program.init)):
        yield replace(program, init=program.init[:i] + program.init[i + 1 :])
    for i in range(len(program.inner_init)):
        yield replace(program, inner_init=program.inner_init[:i] + program.inner_init[i + 1 :])
    for i in range(1, len(program.inputs)):
        yield _without_input(program, i)


def _without_input(program: Program, i: int) -> Program:
    def without(values: tuple[str, ...]) -> tuple[str, ...]:
        return values[:i] + values[i + 1 :]

    calls = tuple(tuple(replace(c, arguments=without(c.arguments)) for c in s) for s in program.calls)
    example = replace(program.example, arguments=without(program.example.arguments))
    dynamic = program.dynamic.replace(', "xs": {0: "B"}', "") if program.inputs[i] == "xs" else program.dynamic
    return replace(program, inputs=without(program.inputs), example=example, calls=calls, dynamic=dynamic)


def _bodies(body: tuple[Statement, ...]) -> Iterator[tuple[Statement, ...]]:
    half = len(body) // 2
    if half > 1:
        yield from (body[half:], body[:half])
    for i, statement in enumerate(body):
        yield body[:i] + body[i + 1 :]
        for inside in statement.bodies:
            yield body[:i] + inside + body[i + 1 :]
    for i, statement in enumerate(body):
        yield from ((*body[:i], smaller, *body[i + 1 :]) for smaller in _statements(statement))


def _statements(statement: Statement) -> Iterator[Statement]:
    for i, body in enumerate(statement.bodies):
        for smaller in _bodies(body):
            yield replace(statement, bodies=(*statement.bodies[:i], smaller, *statement.bodies[i + 1 :]))
    for i, part in enumerate(statement.parts):
        for simpler in _expressions(part):
            yield replace(statement, parts=(*statement.parts[:i], simpler, *statement.parts[i + 1 :]))


def _expressions(expr: Expr) -> Iterator[Expr]:
    if expr in _CONSTANTS:
        return
    yield from _CONSTANTS[:1]
    yield from expr.parts
    yield from _CONSTANTS[1:]
    for i, part in enumerate(expr.parts):
        for simpler in _expressions(part):
            yield replace(expr, parts=(*expr.parts[:i], simpler, *expr.parts[i + 1 :]))
