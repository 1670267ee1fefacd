"""Numbers in a recorded graph, with the expressions that computed them."""

from __future__ import annotations

import math

from utcompile.graph import Seen
from utcompile.recording.expressions import Expression
from utcompile.recording.tracked import TrackedFloat, TrackedInt


class Sized(int):
    """A whole number in a recorded graph, with the expression that computed it."""

    expression: Expression


class SizedFloat(float):
    """The same of a float."""

    expression: Expression


def with_expression(value: TrackedInt | TrackedFloat) -> Sized | SizedFloat:
    """A tracked number as a recorded graph contains it."""
    made = Sized(value.value) if isinstance(value.value, int) else SizedFloat(value.value)
    made.expression = value.expression
    return made


def holds_numbers(seen: Seen) -> bool:
    """Whether Python may read sizes off a tensor: whole numbers, or one number."""
    return not seen.dtype.is_floating_point or math.prod(seen.shape) == 1
