"""What a form's `place` yields, and what all places answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from utcompile.graph import GraphView, Value
from utcompile.tuners import Tuner, TunerConfig


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How a tuner is tried alone.

    Attributes:
        shapes: of what it reads: values, or the parameters that it changes; None for a parameter that is not there.
        run: what yields its results.
        start: what sees the inputs once before; None where nothing does.
        takes_dtype: whether it reads what has its own dtype (a complex weight); else it reads float32.
    """

    shapes: Sequence[tuple[int, ...] | None]
    run: Callable[..., object]
    start: Callable[..., None] | None = None
    takes_dtype: bool = False


class TunerPlace(ABC):
    """Where a tuner goes, whatever its form: what the phases after matching ask of it.

    Each form's place also has `site` (what the tuner is built from), `source` (the value that it reads) and `targets`
    (what it changes).
    """

    @property
    @abstractmethod
    def given(self) -> tuple[Value, ...]:
        """What the tuner's `forward` takes; for a weight tuner, what the operation reads."""

    def read(self, view: GraphView) -> Sequence[Value]:
        """What the tuner reads in one call of the model."""
        return self.given

    def run(self, tuner: Tuner, inputs: Sequence[torch.Tensor]) -> bool:
        """Run a tuner as it runs in one call of the model, for what that costs.

        Args:
            tuner: the tuner.
            inputs: what `read` says.

        Returns:
            Whether the operation then saves what it reads, for the gradient of a weight that the tuner has made.
        """
        tuner(*inputs)
        return False

    def trial(self, tuner: Tuner, batch: int) -> Trial | None:
        """How the tuner is tried alone, at a batch size; None where it reads what is no real number."""
        if not all(value.dtype.is_floating_point for value in self.given):
            return None
        return Trial(shapes=[value.sizes(batch) for value in self.given], run=tuner)


P = TypeVar("P", bound=TunerPlace, covariant=True)


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
