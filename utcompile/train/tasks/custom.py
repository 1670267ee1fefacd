"""A loss and metrics of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from utcompile.errors import UtcError
from utcompile.train.tasks.base import Meter

Loss = Callable[..., Tensor]
Metrics = Callable[..., Mapping[str, float]]


@dataclass(frozen=True, eq=False)
class Custom:
    """`loss(output, targets)` gives a scalar; `measure(outputs, targets)` gives metrics of the whole validation data.

    Without `measure`, the best epoch is the one with the least loss. `measure` gets the outputs and targets of all
    validation batches, joined along the first dimension, on the CPU; its first entry chooses the best epoch.

    Args:
        metrics: the names of what `measure` returns, the first one first.
        higher: whether more of the first metric is better.
    """

    own_loss: Loss
    measure: Metrics | None = None
    metrics: tuple[str, ...] = ("loss",)
    higher: bool = False
    name: str = "custom"

    def predictions(self, output: object, targets: Tensor) -> Tensor:
        """What the model returned, as it is."""
        return cast("Tensor", output)  # whatever it is: only the user's functions read it

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        try:
            value: object = self.own_loss(predictions, targets)
        except UtcError:
            raise
        except Exception as error:  # whatever a user's code raises
            raise _failed("the loss", error) from error
        if not isinstance(value, Tensor) or value.ndim:
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UtcError(
                "the loss function returned no scalar tensor",
                why=f"it returned {found}",
                fix="return the mean over the batch, e.g. F.mse_loss(output, target)",
                code="train/task",
            )
        return value

    def meter(self) -> Meter:
        return _Collected(self)


class _Collected:
    def __init__(self, task: Custom) -> None:
        self.task, self.total, self.samples = task, 0.0, 0
        self.found: list[Tensor] = []
        self.wanted: list[Tensor] = []

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        count = len(targets)
        self.total += float(self.task.loss(predictions, targets)) * count
        self.samples += count
        if self.task.measure is not None:
            self.found.append(_first(predictions).cpu())
            self.wanted.append(targets.cpu())

    def values(self) -> dict[str, float]:
        if not self.samples:
            raise UtcError("there is no sample to measure on", code="data/not-found")
        values = {"loss": self.total / self.samples}
        if self.task.measure is None:
            return values
        try:
            measured = self.task.measure(torch.cat(self.found), torch.cat(self.wanted))
            found = {str(name): float(value) for name, value in measured.items()}
        except Exception as error:  # whatever a user's code raises
            raise _failed("the metrics", error) from error
        if self.task.metrics[0] not in {**found, **values}:
            raise UtcError(
                f"the metrics function returned no {self.task.metrics[0]!r}",
                why=f"it returned {', '.join(found) or 'nothing'}",
                fix="name one of these as the metric, or return it",
                code="train/task",
            )
        return {**values, **found}


def _first(output: object) -> Tensor:
    if isinstance(output, Mapping):
        output = next(iter(output.values()))
    return cast("Tensor", output[0] if isinstance(output, (tuple, list)) else output)


def _failed(what: str, error: Exception) -> UtcError:
    return UtcError(
        f"{what} failed", why=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", code="train/task"
    )
