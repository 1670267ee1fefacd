"""What a check is, and what it finds. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "failed", "known", "mended", "not run"]


class NotRun(Exception):
    """A check cannot run here; its text says why."""


@dataclass
class Findings:
    """What a check has measured so far, and which of its bounds were broken. What is noted stays if the check crashes.

    Example:
        >>> found = Findings()
        >>> found.at_most("error", 0.5, 0.1)
        >>> found.problems
        ['error is 0.5, at most 0.1 is right']
    """

    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def note(self, **figures: Any) -> None:
        """Figures without a bound."""
        self.figures |= figures

    def at_most(self, name: str, value: float, bound: float) -> None:
        """A figure that must not be larger; NaN is too large."""
        self.figures[name] = value
        if not value <= bound:
            self.problems.append(f"{name} is {value:.3g}, at most {bound:.3g} is right")

    def at_least(self, name: str, value: float, bound: float) -> None:
        """A figure that must not be smaller; NaN is too small."""
        self.figures[name] = value
        if not value >= bound:
            self.problems.append(f"{name} is {value:.6g}, at least {bound:.6g} is right")

    def must(self, truth: bool, problem: str) -> None:
        """A condition, and what to say where it does not hold."""
        if not truth:
            self.problems.append(problem)


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        group: the group of checks, `fold`.
        name: what is checked, unique in the group.
        run: measures, and notes what it finds.
        seconds: after so many it is stopped.
        needs: packages, without which the check is not run.
        cuda: whether it needs a GPU.
    """

    group: str
    name: str
    run: Callable[[Findings], None]
    seconds: float = 30
    needs: tuple[str, ...] = ()
    cuda: bool = False

    @property
    def key(self) -> str:
        """How rows and known failures name it."""
        return f"{self.group}: {self.name}"


@dataclass(frozen=True)
class Row:
    """What became of a check.

    Attributes:
        key: the check's group and name.
        status: `ok`; `failed`; `known`, a failure that is listed with its reason; `mended`, a listed failure that is
            none any more, so that the list is wrong; `not run`.
        seconds: that it took.
        figures: what it measured.
        problems: the bounds that were broken, or the exception.
        why: why it is known to fail, or was not run.
    """

    key: str
    status: Status
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    why: str = ""

    @property
    def alarming(self) -> bool:
        """Whether the run as a whole fails because of it."""
        return self.status in ("failed", "mended")
