"""What a form's `place` yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from utcompile.graph import Value
from utcompile.tuners import TunerConfig

P = TypeVar("P", covariant=True)


@dataclass(frozen=True, kw_only=True)
class Placed(Generic[P]):
    """A place, and what a plan says of it.

    Attributes:
        place: the place.
        config: the tuner's config, settled where the rule leaves it open.
        parameters: how many parameters the tuner trains.
        reads: the value it reads, and `writes`: the value it changes.
        note: what the plan says of it below its table.
    """

    place: P
    config: TunerConfig
    parameters: int
    reads: Value
    writes: Value
    note: str | None = None
