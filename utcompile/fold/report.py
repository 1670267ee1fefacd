"""What folding did, site by site."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["absorbed", "widened", "kept"]


@dataclass(frozen=True)
class FoldedSite:
    """One tuner.

    Attributes:
        id: the site.
        status: `absorbed` (no operation left), `widened` (the same operations, wider) or `kept`.
        max_error: the largest difference, relative to the largest value, between the site before and after, on random
            inputs in float64, before the folded weights are rounded to the model's dtype; 0 where it was kept.
        reason: for `kept`, why.
        retained: the share of the tuner's effect on the weight that survives rounding to the model's dtype.
    """

    id: str
    status: Status
    max_error: float = 0.0
    reason: str = ""
    retained: float = 1.0


@dataclass(frozen=True)
class FoldReport:
    """What became of every tuner, and the proof on the whole model.

    Attributes:
        sites: one entry a tuner, in the rule file's order.
        max_error: largest difference of the model's outputs, tuned and folded, relative to the largest value, on
            random inputs in the model's dtype.
        parameters: of the tuned and of the folded model.
    """

    sites: tuple[FoldedSite, ...]
    max_error: float
    parameters: tuple[int, int]

    @property
    def kept(self) -> tuple[FoldedSite, ...]:
        """The tuners that remain as operations of their own."""
        return tuple(s for s in self.sites if s.status == "kept")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "sites": [vars(s) for s in self.sites],
            "max_error": self.max_error,
            "parameters": {"tuned": self.parameters[0], "folded": self.parameters[1]},
        }

    def __str__(self) -> str:
        counts = Counter(s.status for s in self.sites)
        lines = [", ".join(f"{n} {status}" for status, n in counts.items()) or "no tuners"]
        worst = max((s.max_error for s in self.sites), default=0.0)
        lines.append(f"largest error of a site {worst:.1e} (float64), of the model {self.max_error:.1e} (its dtype)")
        lines += [f"  kept {s.id}: {s.reason}" for s in self.kept]
        return "\n".join(lines)
