"""What a recording learned of Python's decisions: questions asked of sizes, values that left, flags that were read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from utcompile.recording.expressions import Expression
from utcompile.recording.messages import in_message
from utcompile.recording.source import source_line
from utcompile.recording.tracked import expression_of, is_tracked, plain

T = torch.Tensor
SizeOf = Callable[[T, int], Any]
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
        self.flags: dict[tuple[int, str], tuple[Any, str]] = {}

    def ask(self, question: Expression, answer: bool) -> None:
        """Write down a comparison."""
        if question not in self.asked:
            self.asked[question] = (answer, source_line())

    def leak(self, how: str, expression: Expression, value: Any) -> None:
        """A value went where no further use of it is seen: the recording is right for this value only."""
        if not (how == _TEXT and in_message()):
            self.ask(Expression.of("eq", expression, Expression.const(value)), True)

    def flag(self, serial: int, name: str, value: Any) -> None:
        """Write down a property of a tensor that Python read."""
        if (serial, name) not in self.flags:
            self.flags[serial, name] = (value, source_line())

    def shape(self, asked: Sequence[tuple[Expression, bool, int | None]], serial: int) -> None:
        """Write down comparisons that `slices` found for a node."""
        for question, answer, dim in asked:
            self.shaping.setdefault(question, (answer, source_line(), []))[2].append((serial, dim))

    # --- what a call of torch decides by sizes, and shows to Python or to later sizes ---------------------------------

    def decide(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, size: SizeOf) -> None:
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
            decision(self, tensor, args[1:], kwargs, out, size)

    def _parts(self, tensor: T, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, size: SizeOf) -> None:
        step = args[0] if args else kwargs.get("split_size_or_sections", kwargs.get("split_size"))
        if isinstance(step, int) and tensor.dim():
            dim = plain(args[1] if len(args) > 1 else kwargs.get("dim", 0))
            parts = Expression.of("parts", expression_of(size(tensor, dim)), expression_of(step))
            self._count(parts, out)

    def _chunks(self, tensor: T, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, size: SizeOf) -> None:
        chunks = args[0] if args else kwargs["chunks"]
        dim = plain(args[1] if len(args) > 1 else kwargs.get("dim", 0))
        whole = expression_of(size(tensor, dim))
        each = Expression.of("max", Expression.of("parts", whole, expression_of(chunks)), Expression.const(1))
        self._count(Expression.of("parts", whole, each), out)

    def _members(self, tensor: T, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, size: SizeOf) -> None:
        dim = plain(args[0] if args else kwargs.get("dim", 0))
        self.ask(Expression.of("eq", expression_of(size(tensor, dim)), Expression.const(tensor.shape[dim])), True)

    def _count(self, parts: Expression, out: Any) -> None:
        self.ask(Expression.of("eq", parts, Expression.const(len(out))), True)

    def _squeezed(self, tensor: T, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, size: SizeOf) -> None:
        given = args or tuple(kwargs[k] for k in ("dim",) if k in kwargs)
        if len(given) == 1 and isinstance(given[0], (tuple, list)):
            given = tuple(given[0])
        for dim in [plain(d) for d in given] if given else range(tensor.dim()):
            one = Expression.of("eq", expression_of(size(tensor, dim)), Expression.const(1))
            if tensor.dim():
                self.ask(one, tensor.shape[dim] == 1)


def slices(args: Sequence[Any], size: SizeOf) -> list[tuple[Expression, bool, int | None]]:
    """Whether the slices of an index are cut off at the end of a dimension: the size behind is another formula then.
    With each question comes the dimension of the result, where it is known.

    Args:
        args: of `tensor[index]`.
        size: the tracked size of a dimension of a tensor.
    """
    tensor, index = args[0], args[1] if isinstance(args[1], tuple) else (args[1],)
    used = sum(_dims_used(i) for i in index)
    simple = not any(isinstance(i, (T, list)) for i in index)
    dim = behind = 0
    found: list[tuple[Expression, bool, int | None]] = []
    for one in index:
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


def _cut_off(bound: Any, tensor: T, whole: Any, dim: int) -> list[tuple[Expression, bool]]:
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


def _dims_used(index: Any) -> int:
    if index is None or index is Ellipsis or isinstance(index, bool):
        return 0
    return index.dim() if isinstance(index, T) and index.dtype == torch.bool else 1


_DECISIONS: dict[str, Any] = {
    "split": Questions._parts, "unsafe_split": Questions._parts, "chunk": Questions._chunks,
    "unsafe_chunk": Questions._chunks,
    "unbind": Questions._members, "__iter__": Questions._members, "squeeze": Questions._squeezed,
    "squeeze_": Questions._squeezed,
}  # fmt: skip
