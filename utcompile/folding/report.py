"""What folding did, site by site."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from utcompile.text import amount, columns

Status = Literal["absorbed", "widened", "constant", "kept"]
_COLUMNS = ("site", "status", "parameters", "FLOPs", "float64", "own dtype", "retained")


@dataclass(frozen=True)
class FoldedSite:
    """One tuner, or one operation of the base that was folded on request.

    A site is all between the values that folding leaves alone and those that must stay the same: its tuner and the
    layers that it goes into.

    Attributes:
        id: the site.
        status: `absorbed` (no operation left), `widened` (the same operations, wider), `constant` (precomputed) or
            `kept`.
        max_error: the largest difference, relative to the largest value, between the site before and after, on random
            inputs in float64, before the folded weights are rounded to the model's dtype; 0 where it was kept.
        reason: for `kept`, why; else what is to be known of it.
        retained: the share of the tuner's effect that survives rounding to the model's dtype.
        dtype_error: as `max_error`, in the model's dtype with rounded weights; None where the site does not run in it.
        parameters: that the site reads, before and after.
        flops: of the site for one sample, before and after; None where they cannot be counted.
        cloned: bytes of tied weights that the site now has for itself.
    """

    id: str
    status: Status
    max_error: float = 0.0
    reason: str = ""
    retained: float = 1.0
    dtype_error: float | None = 0.0
    parameters: tuple[int, int] = (0, 0)
    flops: tuple[int, int] | None = (0, 0)
    cloned: int = 0

    def to_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        return {
            **vars(self),
            "parameters": dict(zip(("before", "after"), self.parameters, strict=True)),
            "flops": None if self.flops is None else dict(zip(("before", "after"), self.flops, strict=True)),
        }

    def row(self) -> tuple[str, ...]:
        """Its line in a table."""
        if self.status == "kept":
            return (self.id, self.status, *[""] * (len(_COLUMNS) - 2))
        return (
            self.id,
            self.status,
            _change(self.parameters),
            "?" if self.flops is None else _change(self.flops),
            f"{self.max_error:.0e}",
            "?" if self.dtype_error is None else f"{self.dtype_error:.0e}",
            f"{self.retained:.1%}",
        )


@dataclass(frozen=True)
class FoldReport:
    """What became of every tuner, and the proof on the whole model.

    Attributes:
        sites: one entry per tuner, in the rule file's order.
        max_error: largest difference of the model's outputs, tuned and folded, relative to the largest value, on
            random inputs in the model's dtype.
        parameters: of the tuned and of the folded model.
        base: what of the base was folded on request: constants and BatchNorms.
        flops: of the tuned and of the folded model for one sample; None where they cannot be counted.
        renamed: why the folded state does not fit the base's architecture, a phrase for each tensor, ties that were
            cut among them; empty where it does.
    """

    sites: tuple[FoldedSite, ...]
    max_error: float
    parameters: tuple[int, int]
    base: tuple[FoldedSite, ...] = ()
    flops: tuple[int, int] | None = None
    renamed: tuple[str, ...] = ()

    @property
    def kept(self) -> tuple[FoldedSite, ...]:
        """The tuners that remain as operations."""
        return tuple(s for s in self.sites if s.status == "kept")

    @property
    def is_original(self) -> bool:
        """Whether the folded `state_dict()` loads into the base's architecture with `strict=True`, and is all of it."""
        return not self.renamed

    def to_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        return {
            "sites": [s.to_dict() for s in self.sites],
            "base": [s.to_dict() for s in self.base],
            "max_error": self.max_error,
            "parameters": {"tuned": self.parameters[0], "folded": self.parameters[1]},
            "flops": None if self.flops is None else {"tuned": self.flops[0], "folded": self.flops[1]},
            "is_original": self.is_original,
            "renamed": list(self.renamed),
        }

    def rows(self) -> list[tuple[str, ...]]:
        """A table: its head, then one line per site."""
        return [_COLUMNS, *(s.row() for s in (*self.sites, *self.base))]

    def summary(self) -> str:
        """What became of them, in a few lines."""
        counts = Counter(s.status for s in self.sites)
        lines = [", ".join(f"{n} {status}" for status, n in counts.items()) or "no tuners"]
        worst = max((s.max_error for s in self.sites), default=0.0)
        lines.append(f"largest error of a site {worst:.1e} (float64), of the model {self.max_error:.1e} (its dtype)")
        before, after = self.parameters
        flops = "" if self.flops is None else f"; FLOPs for one sample {_change(self.flops)}"
        lines.append(f"parameters {before:,} -> {after:,}{flops}")
        if done := Counter(s.status for s in self.base):
            lines.append("of the base: " + ", ".join(f"{n} {status}" for status, n in done.items()))
        lines += [f"  kept {s.id}: {s.reason}" for s in self.kept]
        lines += [f"  {s.id}: {s.reason}" for s in self.sites if s.reason and s.status != "kept"]
        return "\n".join(lines)

    def __str__(self) -> str:
        if not self.sites and not self.base:
            return self.summary()
        return "\n".join([*(line.rstrip() for line in columns(self.rows(), 0)), self.summary()])


def _change(amounts: tuple[int, int]) -> str:
    before, after = (amount(n) for n in amounts)
    return before if before == after else f"{before} -> {after}"
