"""The nearest miss of a pattern at one place."""

from __future__ import annotations

from enum import IntEnum

from torch import fx

from utcompile.matching.kin import Kin
from utcompile.rules import Call, Expression, Path, Step


class Whole(IntEnum):
    """Misses of a pattern that matched as a whole, in place of the number of its lines that are left."""

    CONSTRAINT = -1  # a constraint of the rule failed
    LEFT_OUT = -2  # `select` or `except` leaves the match out


class Trace:
    """The nearest miss of a pattern at one place, shown by `explain` and by the message of an unmet `expect`."""

    def __init__(self) -> None:
        self.steps_left = 10**9
        self.calls_left = 10**9
        self.kin = Kin.NONE
        self.line = ""
        self.node: fx.Node | None = None
        self.reason = ""
        self.call: Call | None = None  # the call of the pattern that the node does not fit
        self.fix: str | None = None

    @property
    def distance(self) -> tuple[int, int, Kin]:
        """The distance to a match: the lines left, the calls left in the line, and how unlike the node is."""
        return self.steps_left, self.calls_left, self.kin

    def note(self, steps_left: int, step: Step, node: fx.Node, reason: str, call: Call | None, kin: Kin) -> None:
        """Keep the deepest failure; of equally deep ones, the first."""
        calls_left = calls_in(call) if call is not None else 0
        if (steps_left, calls_left, kin) < self.distance:
            self.steps_left, self.calls_left, self.kin, self.call = steps_left, calls_left, kin, call
            self.line, self.node, self.reason = step.text, node, reason

    def constraint(self, line: str, node: fx.Node, reason: str, fix: str | None = None) -> None:
        """The whole pattern matched, and a constraint of the rule failed: no miss is nearer."""
        if self.steps_left >= 0:
            self.steps_left, self.calls_left, self.kin, self.call = Whole.CONSTRAINT, 0, Kin.SAME, None
            self.line, self.node, self.reason, self.fix = line, node, reason, fix


def calls_in(expression: Expression) -> int:
    """The number of operations that an expression calls."""
    if isinstance(expression, Call):
        return 1 + sum(map(calls_in, expression.arguments))
    return 1 + calls_in(expression.source) if isinstance(expression, Path) else 0
