"""What a model is worth on a dataset: figures per class, the confusion matrix, and how far its probabilities are right.

Sources: precision, recall and F1 per class; expected calibration error with 15 bins of equal width (Guo et al.,
arXiv 1706.04599).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from utcompile.errors import UtcError
from utcompile.modes import evaluating
from utcompile.train.metrics import called, device_of, moved
from utcompile.train.tasks import IGNORED, Multilabel, Regress, Segment, Task

BINS = 15


@dataclass(frozen=True)
class ClassFigures:
    """One class, label or number: shares of 1, or errors in the target's units."""

    name: str
    support: int
    figures: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """The figures of one evaluation.

    Attributes:
        figures: of all samples, with the task's metrics.
        classes: per class (label, number).
        confusion: samples (or pixels) by true class (rows) and predicted class (columns); None where there are none.
        calibration: bins of the highest probability: its mean, the accuracy, how many. Empty for `regress`.
    """

    task: str
    samples: int
    figures: dict[str, float]
    classes: tuple[ClassFigures, ...]
    confusion: list[list[int]] | None = None
    calibration: list[dict[str, float]] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """Plain data."""
        classes = [{"name": c.name, "support": c.support, **c.figures} for c in self.classes]
        return {**vars(self), "classes": classes}


def evaluate_model(
    model: nn.Module, batches: Iterable[tuple[object, Tensor]], task: Task, names: Sequence[str]
) -> Evaluation:
    """Run a model over batches of inputs and targets, in eval mode on its device, and measure it.

    Args:
        names: of the classes, labels or numbers.

    Raises:
        UtcError: there is no sample, or the outputs do not fit.
    """
    meter, device, samples = task.meter(), device_of(model), 0
    bins, collected = Calibration(), _Collected(task, len(names))
    with evaluating(model):
        for inputs, targets in batches:
            targets = targets.to(device)
            found = task.predictions(called(model, moved(inputs, device)), targets)
            meter.update(found, targets)
            samples += len(targets)
            if task.name != "custom":
                collected.update(found, targets, bins)
    if not samples:
        raise UtcError("there is no sample to measure on", code="data/not-found")
    figures = meter.values()
    if task.name == "custom":
        return Evaluation(task.name, samples, figures, ())
    if bins.total:
        figures["expected_calibration_error"] = bins.error
    return Evaluation(
        task.name, samples, figures, collected.classes(names), collected.matrix(), bins.table() if bins.total else []
    )


class Calibration:
    """How often predictions of a confidence are right, in bins of equal width."""

    def __init__(self) -> None:
        self.counts, self.sure, self.right = (torch.zeros(BINS, dtype=torch.float64) for _ in range(3))

    def update(self, confidence: Tensor, right: Tensor) -> None:
        """Take confidences in [0, 1] and whether each prediction is right."""
        place = (confidence * BINS).long().clamp(0, BINS - 1).flatten().cpu()
        for total, values in ((self.counts, None), (self.sure, confidence), (self.right, right)):
            weights = torch.ones(len(place)) if values is None else values.flatten().cpu()
            total.add_(torch.bincount(place, weights.double(), minlength=BINS))

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @property
    def error(self) -> float:
        """The expected calibration error: the mean distance between confidence and accuracy."""
        return float((self.sure - self.right).abs().sum() / self.counts.sum())

    def table(self) -> list[dict[str, float]]:
        """The bins that are not empty."""
        return [
            {
                "from": i / BINS,
                "to": (i + 1) / BINS,
                "confidence": float(self.sure[i] / self.counts[i]),
                "accuracy": float(self.right[i] / self.counts[i]),
                "count": int(self.counts[i]),
            }
            for i in range(BINS)
            if self.counts[i]
        ]


class _Collected:
    """Counts per class, or errors per number."""

    def __init__(self, task: Task, count: int) -> None:
        self.task, self.count = task, count
        self.confusion = torch.zeros(count, count, dtype=torch.int64)
        self.hits, self.said, self.true = (torch.zeros(count, dtype=torch.float64) for _ in range(3))
        self.differences: list[Tensor] = []
        self.targets: list[Tensor] = []

    def update(self, found: Tensor, targets: Tensor, bins: Calibration) -> None:
        match self.task:
            case Regress():
                self.differences.append((self.task.restored(found) - targets.float()).cpu())
                self.targets.append(targets.float().cpu())
            case Multilabel():
                chances, wanted = found.sigmoid(), targets > 0.5
                said = chances >= 0.5
                bins.update(torch.maximum(chances, 1 - chances), (said == wanted).float())
                for total, flags in ((self.hits, said & wanted), (self.said, said), (self.true, wanted)):
                    total.add_(flags.sum(0).double().cpu())
            case _:
                chances = found[:, : self.count].softmax(1)
                best, said = chances.max(1)
                if isinstance(self.task, Segment):
                    counted = targets != IGNORED
                    best, said, targets = best[counted], said[counted], targets[counted]
                bins.update(best, (said == targets).float())
                pairs = (targets * self.count + said).flatten().cpu()
                self.confusion += torch.bincount(pairs, minlength=self.count**2).reshape(self.count, self.count)

    def matrix(self) -> list[list[int]] | None:
        if isinstance(self.task, (Regress, Multilabel)):
            return None
        rows: list[list[int]] = self.confusion.tolist()
        return rows

    def classes(self, names: Sequence[str]) -> tuple[ClassFigures, ...]:
        if isinstance(self.task, Regress):
            return self._numbers(names)
        if not isinstance(self.task, Multilabel):
            self.hits, self.said, self.true = (
                v.double() for v in (self.confusion.diag(), self.confusion.sum(0), self.confusion.sum(1))
            )
        return tuple(
            ClassFigures(name, int(self.true[i]), _shares(self.hits[i], self.said[i], self.true[i], self.task))
            for i, name in enumerate(names)
        )

    def _numbers(self, names: Sequence[str]) -> tuple[ClassFigures, ...]:
        errors, targets = torch.cat(self.differences), torch.cat(self.targets)
        found = []
        for i, name in enumerate(names):
            error, spread = errors[:, i], targets[:, i] - targets[:, i].mean()
            figures = {
                "mae": float(error.abs().mean()),
                "rmse": float(error.square().mean().sqrt()),
                "bias": float(error.mean()),
            }
            if float(spread.square().sum()) > 0:
                figures["r2"] = float(1 - error.square().sum() / spread.square().sum())
            found.append(ClassFigures(name, len(error), figures))
        return tuple(found)


def _shares(hits: Tensor, said: Tensor, true: Tensor, task: Task) -> dict[str, float]:
    """Precision, recall and F1 of one class; 0 where nothing was predicted or nothing is true."""
    found = {
        "precision": float(hits / said) if said else 0.0,
        "recall": float(hits / true) if true else 0.0,
        "f1": float(2 * hits / (said + true)) if said + true else 0.0,
    }
    if isinstance(task, Segment):
        found["iou"] = float(hits / (said + true - hits)) if said + true else 0.0
    return found
