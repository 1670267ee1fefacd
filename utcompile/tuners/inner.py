"""The inner axis of a tuner, by which tasks on one base may differ: the rank of a LoRA, the width of a bottleneck."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Inner:
    """An axis inside a tuner, along which zeros change nothing.

    Attributes:
        field: of the config; the size of the axis.
        axes: the tensors that have it, by their names in the tuner, and which of their dimensions it is.
        results: the tensors in which the tuner's result is linear: a factor on the result is one on each of these.
    """

    field: str
    axes: Mapping[str, int]
    results: tuple[str, ...]
