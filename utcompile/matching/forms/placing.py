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
    """The place of a tuner of any form, with the methods that later phases use.

    The place of every form also has `site` (the site as the tuner's `build` sees it), `source` (the value that the
    tuner reads) and `targets` (the nodes that it changes).
    """

    @property
    @abstractmethod
    def given(self) -> tuple[Value, ...]:
        """The inputs of the tuner's `forward`; for a weight tuner, of the operation."""

    def read(self, view: GraphView) -> Sequence[Value]:
        """The values that the tuner reads in one call of the model."""
        return self.given

    def run(self, tuner: Tuner, inputs: Sequence[torch.Tensor]) -> bool:
        """Run a tuner as it runs in one call of the model, to count its cost.

        Args:
            tuner: the tuner.
            inputs: tensors for the values of `read`.

        Returns:
            Whether the operation then saves its input, for the gradient of a weight that the tuner has made.
        """
        tuner(*inputs)
        return False

    def trial(self, tuner: Tuner, batch: int) -> Trial | None:
        """The trial of the tuner alone, at a batch size; None where it reads values that are not real numbers."""
        if not all(value.dtype.is_floating_point for value in self.given):
            return None
        return Trial(shapes=[value.sizes(batch) for value in self.given], run=tuner)


P = TypeVar("P", bound=TunerPlace, covariant=True)


@dataclass(frozen=True, kw_only=True)
class Placed(Generic[P]):
    """A place, and its facts for a plan.

    Attributes:
        place: the place.
        config: the tuner's config; what the rule leaves open is decided.
        parameters: the number of parameters that the tuner trains.
        reads: the value that it reads.
        writes: the value that it changes.
        note: a remark of the plan below its table.
    """

    place: P
    config: TunerConfig
    parameters: int
    reads: Value
    writes: Value
    note: str | None = None
