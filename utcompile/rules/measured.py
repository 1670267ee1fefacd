"""What `how: measured` found at a site: the form that was the fastest, and the times. Plain data of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from utcompile.errors import UtcError
from utcompile.tuners.forms import TIMED_FORMS, TimedForm

_TEXTS = {"branch": "branch", "reparametrised": "reparametrised", "one": "one operation"}


@dataclass(frozen=True)
class Measured:
    """The form of a site, and why.

    Attributes:
        form: `branch`, `reparametrised`, or `one`: the branch, as one operation with what it tunes in training.
        seconds: of one step of the site alone, by form; empty where only one form is possible.
        at: what it was measured on: shape, dtype and device; or why nothing was measured.
    """

    form: TimedForm
    seconds: Mapping[str, float]
    at: str = ""

    def __str__(self) -> str:
        """The choice with its ratios.

        >>> print(Measured("branch", {"branch": 0.002, "reparametrised": 0.003}, "[2, 4] float32 on cpu"))
        branch, 2.00 ms (reparametrised 1.50 times as long), at [2, 4] float32 on cpu
        """
        if len(self.seconds) < 2:
            return f"{_TEXTS[self.form]}, {self.at or 'which alone is possible'}"
        mine = self.seconds[self.form]
        others = [f"{_TEXTS[f]} {s / mine:.2f} times as long" for f, s in self.seconds.items() if f != self.form]
        return f"{_TEXTS[self.form]}, {1000 * mine:.2f} ms ({', '.join(others)}), at {self.at}"

    def to_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        return {"form": self.form, "seconds": dict(self.seconds), "at": self.at}

    @classmethod
    def of(cls, data: object, site: str) -> Self:
        """What a checkpoint says of a site; it may say anything.

        Raises:
            UtcError: it is no such data.
        """
        if isinstance(data, cls):
            return data
        form, seconds, at = (
            (data.get(k) for k in ("form", "seconds", "at")) if isinstance(data, Mapping) else [None] * 3
        )
        named = next((known for known in TIMED_FORMS if known == form), None)
        times = seconds if isinstance(seconds, Mapping) else None
        fits = times is not None and all(
            k in TIMED_FORMS and type(v) in (int, float) and v > 0 for k, v in times.items()
        )
        if named is None or times is None or not fits or (times and named not in times) or not isinstance(at, str):
            raise UtcError(
                f"what was measured at {site!r:.80} is {data!r:.80}",
                why=f"it has a form ({', '.join(TIMED_FORMS)}), the seconds of each form, and what it was measured at",
                fix="leave out `measured`, and the forms are measured again",
                code="rule/include",
            )
        return cls(named, {str(k): float(v) for k, v in times.items()}, at)


def all_measured(data: object) -> dict[str, Measured]:
    """The measurements by the ids of sites.

    Raises:
        UtcError: it is no such data.
    """
    if data is None:
        return {}
    if not isinstance(data, Mapping) or not all(isinstance(site, str) for site in data):
        raise UtcError(
            f"`measured` is a mapping from the ids of sites to what was measured there, not {data!r:.80}",
            fix="give what the manifest of a checkpoint has at `rules.measured`",
            code="rule/include",
        )
    return {site: Measured.of(found, site) for site, found in data.items()}
