"""The face of a task, and what several tasks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from utcompile.errors import UtcError


class Task(Protocol):
    """What a model is trained for.

    Attributes:
        name: `classify`, `segment` …
        metrics: what is measured on the validation data; the first one chooses the best epoch.
        higher: whether more of the first metric is better.
    """

    @property
    def name(self) -> str: ...

    @property
    def metrics(self) -> tuple[str, ...]: ...

    @property
    def higher(self) -> bool: ...

    def predictions(self, output: object, targets: Tensor) -> Tensor:
        """The predictions among what a model returned, in float32.

        Raises:
            UtcError: there are none, or they do not fit the targets.
        """

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch, a scalar."""

    def meter(self) -> Meter:
        """Something that measures predictions, batch by batch."""


@runtime_checkable
class Counts(Protocol):
    """A task whose loss is no mean over samples: classes are weighted, or pixels are ignored."""

    def counted(self, targets: Tensor) -> float:
        """How much a batch counts in a mean over several."""


class Meter(Protocol):
    """Measures predictions batch by batch."""

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take the predictions of one more batch."""

    def values(self) -> dict[str, float]:
        """`loss` and the task's metrics over all batches."""


class Measures:
    """The loss, weighted by the number of samples, and metrics of torchmetrics.

    Args:
        loss: of a batch, the mean over its samples.
        metrics: by name; each has `update`, `compute` and `to`.
        read: makes of predictions what the metrics take.
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        metrics: Mapping[str, Any],
        read: Callable[[Tensor], Tensor] = lambda predictions: predictions,
    ) -> None:
        self.loss, self.metrics, self.read = loss, dict(metrics), read
        self.total, self.samples = 0.0, 0

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        self.total += float(self.loss(predictions, targets)) * len(targets)
        self.samples += len(targets)
        read = self.read(predictions)
        for name in self.metrics:
            self.metrics[name] = self.metrics[name].to(predictions.device)
            self.metrics[name].update(read, targets)

    def values(self) -> dict[str, float]:
        if not self.samples:
            raise UtcError("there is no sample to measure on", code="data/not-found")
        return {"loss": self.total / self.samples, **{k: float(m.compute()) for k, m in self.metrics.items()}}


def tensor_in(output: object, rank: int | None, shape: str, keys: Sequence[str] = ("logits", "out")) -> Tensor:
    """The predictions among what a model returns: itself, an entry such as `logits`, or its first member.

    Args:
        rank: how many dimensions they must have; None for any.
        shape: what they should be, for the message: `logits (B, classes)`.
    """
    if isinstance(output, Mapping):
        output = next((output[key] for key in keys if key in output), output)
        if isinstance(output, Mapping) and len(output) == 1:
            output = next(iter(output.values()))
    elif isinstance(output, (tuple, list)) and output:
        output = getattr(output, "logits", output[0])
    if not isinstance(output, Tensor) or (rank is not None and output.ndim != rank):
        found = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise UtcError(
            f"the model returns {found}, not {shape}",
            fix=_FIXES.get(shape, f"train a model that returns {shape}, or a wrapper that does"),
            code="train/model",
        )
    return output.float()


LOGITS = "logits (B, classes)"
_FIXES = {LOGITS: "train a model with a classification head, or a wrapper that returns its logits"}


def check_outputs(found: int, wanted: int, what: str, *, exactly: bool = False) -> None:
    """Raise where a head has too few outputs for the data, or not exactly as many.

    Args:
        what: of the data: `classes`.
    """
    if found < wanted or (exactly and found != wanted):
        one = "class" if what == "classes" else what[:-1]
        raise UtcError(
            f"the model has {found} outputs, the data {wanted} {what if wanted != 1 else one}",
            fix=f"give the model a head of {wanted} {what} (--num-classes)",
            code="train/model",
        )
