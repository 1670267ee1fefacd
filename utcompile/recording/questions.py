"""Python's decisions in a recording: comparisons of sizes, values that left, flags that were read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from utcompile.recording.active import Args, Kwargs
from utcompile.recording.expressions import Expression, Number
from utcompile.recording.messages import in_message
from utcompile.recording.source import source_line
from utcompile.recording.tracked import expression_of, is_tracked, plain

T = torch.Tensor
SizeOf = Callable[[T, int], int]
_TEXT = "text"
GRAD_MODE = "is_grad_enabled"


class Questions:
    """The questions of one recording, each with its answer and the source line that asked first.

    Attributes:
        asked: comparison -> (answer, line).
        shaping: comparison -> (answer, line, dimensions as serial number of the node and index): it decides by which
            formula the sizes of these come from those of the node's inputs, and nothing else.
        flags: (serial number of a node, property) -> (value, line).
    """

    def __init__(self) -> None:
        self.asked: dict[Expression, tuple[bool, str]] = {}
        self.shaping: dict[Expression, tuple[bool, str, list[tuple[int, int | None]]]] = {}
        self.flags: dict[tuple[int, str], tuple[bool, str]] = {}

    def ask(self, question: Expression, answer: bool) -> None:
        """Write down a comparison."""
        if question not in self.asked:
            self.asked[question] = (answer, source_line())

    def leak(self, how: str, expression: Expression, value: Number) -> None:
        """A value went to code where its use is not seen: the recording is right for this value only."""
        if not (how == _TEXT and in_message()):
            self.ask(Expression.of("eq", expression, Expression.const(value)), True)

    def flag(self, serial: int, name: str, value: bool) -> None:
        """Write down a property of a tensor that Python read."""
        if (serial, name) not in self.flags:
            self.flags[serial, name] = (value, source_line())

    def shape(self, asked: Sequence[tuple[Expression, bool, int | None]], serial: int) -> None:
        """Write down comparisons that `slices` found for a node."""
        for question, answer, dim in asked:
            self.shaping.setdefault(question, (answer, source_line(), []))[2].append((serial, dim))

    # --- what a call of torch decides by sizes, and shows to Python or to later sizes ---------------------------------

    def decide(self, name: str, args: Args, kwargs: Kwargs, out: object, size: SizeOf) -> None:
        """Ask what a call of torch decides by the sizes of its input: how many parts, which dimensions.

        Args:
            name: the function's name.
            args, kwargs: as the model gave them, tracked numbers included.
            out: the result.
            size: the tracked size of a dimension of a tensor.
        """
        decision = _DECISIONS.get(name)
        tensor = args[0] if args else next((kwargs[k] for k in ("input", "self", "tensor") if k in kwargs), None)
        if decision is not None and isinstance(tensor, T):
            for question, answer in decision(_Call(tensor, args[1:], kwargs, size), out):
                self.ask(question, answer)


@dataclass(frozen=True)
class _Call:
    """A call of torch that decides by sizes.

    Attributes:
        tensor: its input.
        args, kwargs: the other arguments, tracked numbers included.
        size: the tracked size of a dimension of a tensor.
    """

    tensor: T
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    size: SizeOf

    def dim(self, at: int) -> int:
        """The argument `dim`, which is number `at` where it is given by position."""
        given: int = self.args[at] if len(self.args) > at else self.kwargs.get("dim", 0)
        return plain(given)

    def whole(self, dim: int) -> Expression:
        """The size of a dimension."""
        return expression_of(self.size(self.tensor, dim))


_Asked = Iterator[tuple[Expression, bool]]


def _parts(call: _Call, out: object) -> _Asked:
    named = call.kwargs.get("split_size_or_sections", call.kwargs.get("split_size"))
    step = call.args[0] if call.args else named
    if isinstance(step, int) and call.tensor.dim():
        yield _count(Expression.of("parts", call.whole(call.dim(1)), expression_of(step)), out)


def _chunks(call: _Call, out: object) -> _Asked:
    chunks = call.args[0] if call.args else call.kwargs["chunks"]
    whole = call.whole(call.dim(1))
    each = Expression.of("max", Expression.of("parts", whole, expression_of(chunks)), Expression.const(1))
    yield _count(Expression.of("parts", whole, each), out)


def _count(parts: Expression, out: object) -> tuple[Expression, bool]:
    number = len(out) if isinstance(out, (tuple, list)) else 0
    return Expression.of("eq", parts, Expression.const(number)), True


def _members(call: _Call, out: object) -> _Asked:
    dim = call.dim(0)
    yield Expression.of("eq", call.whole(dim), Expression.const(call.tensor.shape[dim])), True


def _squeezed(call: _Call, out: object) -> _Asked:
    given = call.args or tuple(call.kwargs[k] for k in ("dim",) if k in call.kwargs)
    if len(given) == 1 and isinstance(given[0], (tuple, list)):
        given = tuple(given[0])
    rank = call.tensor.dim()
    for dim in (plain(d) for d in given) if given else range(rank):
        one = Expression.of("eq", call.whole(dim), Expression.const(1))
        if rank:
            yield one, call.tensor.shape[dim] == 1


def slices(tensor: T, index: object, size: SizeOf) -> list[tuple[Expression, bool, int | None]]:
    """The questions whether slices of an index are cut off at the end of a dimension, where sizes have another formula.
    With each question comes the dimension of the result, where it is known.

    Args:
        tensor, index: of `tensor[index]`.
        size: the tracked size of a dimension of a tensor.
    """
    indices = index if isinstance(index, tuple) else (index,)
    used = sum(_dims_used(i) for i in indices)
    simple = not any(isinstance(i, (T, list)) for i in indices)
    dim = behind = 0
    found: list[tuple[Expression, bool, int | None]] = []
    for one in indices:
        if one is Ellipsis:
            dim += tensor.dim() - used
            behind += tensor.dim() - used
        elif isinstance(one, slice):
            for bound in (one.start, one.stop):
                asked = _cut_off(bound, tensor, size(tensor, dim), dim)
                found += [(question, answer, behind if simple else None) for question, answer in asked]
        dim += _dims_used(one)
        behind += one is None or isinstance(one, slice)
    return found


def _cut_off(bound: int | T | None, tensor: T, whole: int, dim: int) -> list[tuple[Expression, bool]]:
    if bound is None or isinstance(bound, T) or (not is_tracked(whole) and not is_tracked(bound)):
        return []
    value, given = plain(bound), expression_of(bound)
    if value == 0 and not is_tracked(bound):
        return []
    length = given if value >= 0 else Expression.of("neg", given)
    found = [(Expression.of("le", length, expression_of(whole)), abs(value) <= tensor.shape[dim])]
    if is_tracked(bound):
        found.append((Expression.of("ge", given, Expression.const(0)), value >= 0))
    return found


def _dims_used(index: object) -> int:
    if index is None or index is Ellipsis or isinstance(index, bool):
        return 0
    return index.dim() if isinstance(index, T) and index.dtype == torch.bool else 1


# per function, the questions that it decides by its arguments and its result
_DECISIONS: dict[str, Callable[[_Call, object], _Asked]] = {
    "split": _parts, "unsafe_split": _parts, "chunk": _chunks, "unsafe_chunk": _chunks,
    "unbind": _members, "__iter__": _members, "squeeze": _squeezed, "squeeze_": _squeezed,
}  # fmt: skip
