"""Sizes at which a model decides as it does at the example's, as far as one recording shows.

A graph needs three recordings that run alike. Where the model has a threshold between the sizes that are recorded
first, its own questions show where: `B <= 4` leaves 1 to 4. These sizes are a guess, and the recordings decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from utcompile.graph import Symbol, info
from utcompile.recording.expressions import Expression
from utcompile.recording.recorder import Recorder

Sizes = Mapping[Symbol, int]
_FARTHEST = 64  # steps from the example
_NEEDED = 3


def sizes_alike(
    recorder: Recorder, recorded: Sizes, example: Sizes, sources: Mapping[Symbol, tuple[int, int]], *, upwards: bool
) -> dict[Symbol, tuple[int, ...]]:
    """For each symbol, the example's size and the two nearest sizes at which most questions have the same answer.

    They are on one side of the example's where that is possible: a threshold lies on the other.

    Args:
        recorder: one recording.
        recorded: its sizes.
        example: the sizes of the example inputs.
        sources: where each symbol is read: number of the input tensor, and dimension.
        upwards: which side is looked at first.
    """
    questions = list(_questions(recorder, recorded, sources))
    answers = [question(example) for question in questions]

    def otherwise(sizes: Sizes) -> int:
        """How many questions have another answer."""
        pairs = zip(questions, answers, strict=True)
        return sum(answer is not None and question(sizes) != answer for question, answer in pairs)

    chosen: dict[Symbol, tuple[int, ...]] = {}
    for symbol, size in example.items():
        around = _around(symbol, size, upwards)
        best = sorted(around, key=lambda n, symbol=symbol: otherwise({**example, symbol: n}))  # type: ignore[misc]
        chosen[symbol] = (size, *best[: _NEEDED - 1])
    return chosen


def _around(symbol: Symbol, size: int, upwards: bool) -> Iterable[int]:
    """Other sizes: one side and then the other, the nearest first, whole steps before single ones."""
    away = [i * step for step in (symbol.step, 1) for i in range(1, _FARTHEST + 1)]
    up, down = [size + n for n in away], [size - n for n in away if n < size]
    return dict.fromkeys(up + down if upwards else down + up)


def _questions(
    recorder: Recorder, recorded: Sizes, sources: Mapping[Symbol, tuple[int, int]]
) -> Iterator[Callable[[Sizes], bool | None]]:
    """The questions of a recording, as functions of the symbols."""
    inputs = {(info(recorder.inputs[i]).serial, dim): symbol for symbol, (i, dim) in sources.items()}

    def symbol_of(reading: Expression) -> Symbol | int:
        """The symbol that a reading seems to be, by its place or its value; its value where it seems to be none."""
        if reading.op == "size" and (reading.serial, reading.dim) in inputs:
            return inputs[reading.serial, reading.dim]
        value = recorder.metadata.readings.get(reading, 1)
        return next((s for s, size in recorded.items() if size == value), value)

    for question in [*recorder.questions.asked, *recorder.questions.shaping]:
        known = {reading: symbol_of(reading) for reading in question.readings()}
        if any(isinstance(s, Symbol) for s in known.values()):
            yield partial(_answer, question, known)


def _answer(question: Expression, known: Mapping[Expression, Symbol | int], sizes: Sizes) -> bool | None:
    try:
        return bool(question.value({r: sizes[s] if isinstance(s, Symbol) else s for r, s in known.items()}))
    except (ArithmeticError, ValueError, TypeError):
        return None
