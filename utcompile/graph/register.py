"""Operations that the table does not ship: a custom kernel's row, and the callables that it is spelled with.

The capture records a call of a custom kernel as one node. With a row, the node reads as an operation as any other.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload, OpOverloadPacket

from utcompile.errors import UtcError
from utcompile.graph import spellings
from utcompile.ops import ROWS, Row, add, remove

_undo: dict[str, list[Callable[[], object]]] = {}  # by the name of an operation that was registered


def register(row: Row, signature: str, callables: Iterable[object]) -> None:
    """Add a row, and let calls of some callables read as its operation.

    Args:
        row: the operation; its own spellings are empty.
        signature: of all callables.
        callables: custom operators of torch (objects or `"torch.ops.ns.name"`), functions of torch, or module classes.

    Raises:
        UtcError: the name or a callable is taken, the signature is none, or is not the kernel's.
    """
    spelling = _spelling(row.name, signature)
    targets = [target for callable_ in callables for target in _targets(callable_, row.name)]
    if not targets:
        raise UtcError(
            f"the operation {row.name!r} has no spelling",
            fix="give the kernel's callable in `spellings`",
            code="extend/operation",
        )
    if row.name in _undo and _is_same(row):
        forget(row.name)  # a notebook's cell, run again
    if row.name in ROWS:
        why = ROWS[row.name].gloss or "it is an operation of torch"
        raise UtcError(
            f"the operation {row.name!r} exists already", why=why, fix="choose another name", code="extend/operation"
        )
    for table, key in targets:
        if key in table:
            raise UtcError(
                f"{_shown(key)} is a spelling already",
                why=f"it is the operation {table[key].name!r}",
                code="extend/operation",
            )
        if isinstance(key, OpOverload):
            _check_schema(key, spelling)
    for table, key in targets:
        table[key] = spelling
    _undo[row.name] = [partial(table.__delitem__, key) for table, key in targets]
    add(row)


def forget(name: str) -> None:
    """Undo `register`."""
    for undo in _undo.pop(name):
        undo()
    remove(name)


def _is_same(row: Row) -> bool:
    known = ROWS[row.name]
    return (known.gloss, known.traits, known.axes) == (row.gloss, row.traits, row.axes)


def _spelling(name: str, signature: str) -> spellings.Spelling:
    try:
        return spellings.read_signature(name, signature, 0)
    except (SyntaxError, ValueError) as error:
        raise UtcError(
            f"{signature!r} is no signature",
            where=f"the operation {name!r}",
            why=str(error),
            fix="write arguments as in Python, with literals as defaults: 'input, weight, eps=1e-5'",
            code="extend/operation",
        ) from error


def _targets(callable_: object, name: str) -> list[tuple[dict[Any, spellings.Spelling], object]]:
    """The keys under which calls of a callable are looked up, with the tables of these keys."""
    if isinstance(callable_, str):
        callable_ = _named(callable_, name)
    callable_ = getattr(callable_, "_opoverload", callable_)  # of torch.library.custom_op
    if isinstance(callable_, OpOverload):
        callable_ = callable_.overloadpacket
    if isinstance(callable_, OpOverloadPacket):
        every = [callable_, *(getattr(callable_, overload) for overload in callable_.overloads())]
        return [(spellings.functions, key) for key in every]
    if isinstance(callable_, type) and issubclass(callable_, nn.Module):
        return [(spellings.modules, callable_)]
    if not callable(callable_):
        raise UtcError(
            f"{callable_!r} cannot be called", where=f"the spellings of the operation {name!r}", code="extend/operation"
        )
    if isinstance(callable_, types.FunctionType) and not callable_.__module__.startswith("torch."):
        raise UtcError(
            f"{_shown(callable_)} is Python, and the graph has the calls in it instead",
            where=f"the spellings of the operation {name!r}",
            fix="make it a custom operator: @torch.library.custom_op('mine::name', mutates_args=())",
            code="extend/operation",
        )
    return [(spellings.functions, callable_)]


def _named(text: str, name: str) -> object:
    found: object = torch
    first, *rest = text.split(".")
    try:
        if first != "torch":
            raise AttributeError("it does not begin with 'torch.'")
        for part in rest:
            found = getattr(found, part)
    except AttributeError as error:
        raise UtcError(
            f"there is no {text!r}",
            where=f"the spellings of the operation {name!r}",
            why=str(error).splitlines()[0],
            fix="define the operator first, or import what defines it; write 'torch.ops.<namespace>.<name>'",
            code="extend/operation",
        ) from error
    return found


def _check_schema(key: OpOverload, spelling: spellings.Spelling) -> None:
    schema = key._schema
    names = [argument.name for argument in schema.arguments]
    if schema.is_mutable:
        raise UtcError(
            f"{key} writes into its arguments", fix="register an operator with mutates_args=()", code="extend/operation"
        )
    if list(spelling.schema) != names:
        raise UtcError(
            f"the signature of {key} is another",
            why=f"it takes ({', '.join(names)}), not ({', '.join(spelling.schema)})",
            fix="name the arguments as the operator does, in its order",
            code="extend/operation",
        )


def _shown(key: object) -> str:
    named = f"{getattr(key, '__module__', None)}.{getattr(key, '__qualname__', '')}"
    return str(key) if isinstance(key, (OpOverload, OpOverloadPacket)) or not hasattr(key, "__qualname__") else named
