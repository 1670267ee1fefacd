"""One class per sample: images, texts, or anything else with logits `(B, classes)`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from utcompile.train.mixing import soft_cross_entropy
from utcompile.train.tasks.base import LOGITS, Measures, Meter, check_outputs, tensor_in
from utcompile.train.tasks.measured import classification, is_higher


@dataclass(frozen=True, eq=False)
class Classify:
    """Cross-entropy; measured by top-1 accuracy.

    Args:
        num_classes: labels run from 0 to `num_classes - 1`.
        label_smoothing: a share from 0 to below 1.
        weights: of the classes in the training loss, `(classes,)`.
        name: `text` where the samples are texts.
    """

    num_classes: int
    label_smoothing: float = 0.0
    weights: Tensor | None = None
    metrics: tuple[str, ...] = ("accuracy",)
    name: str = "classify"

    @property
    def higher(self) -> bool:
        return is_higher(self.metrics[0])

    def predictions(self, output: object, targets: Tensor) -> Tensor:
        """Logits `(B, classes)`."""
        logits = tensor_in(output, 2, LOGITS)
        check_outputs(logits.shape[1], self.num_classes, "classes")
        return logits

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Of labels `(B,)`, or of shares of the classes `(B, classes)`."""
        weights = self.weights
        if weights is not None:  # a class that the head has and the data has not weighs nothing
            weights = F.pad(weights, (0, predictions.shape[1] - len(weights))).to(predictions.device)
        if targets.is_floating_point():
            return soft_cross_entropy(predictions, targets, weights, self.label_smoothing)
        return F.cross_entropy(predictions, targets, weights, label_smoothing=self.label_smoothing)

    def counted(self, targets: Tensor) -> float:
        """The sum of the weights of a batch's classes: of labels `(B,)`, or of shares of the classes."""
        if self.weights is None:
            return float(len(targets))
        weights = self.weights.to(targets.device)
        return float((targets * weights).sum() if targets.is_floating_point() else weights[targets].sum())

    def meter(self) -> Meter:
        others = tuple(name for name in self.metrics if name != "accuracy")
        return Accuracy(Measures(F.cross_entropy, classification(others, self.num_classes)), self)


class Accuracy:
    """Counts right predictions and sums the loss; exact whatever the batches are. Other metrics are torchmetrics'."""

    def __init__(self, others: Measures, task: Classify) -> None:
        self.others, self.task = others, task
        self.right, self.loss, self.total = 0, 0.0, 0

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        self.right += int((predictions.argmax(1) == targets).sum())
        self.loss += float(F.cross_entropy(predictions, targets, reduction="sum"))
        self.total += len(targets)
        if self.others.metrics:
            self.others.update(torch.as_tensor(predictions[:, : self.task.num_classes]), targets)

    def values(self) -> dict[str, float]:
        found = {"loss": self.loss / self.total, "accuracy": self.right / self.total}
        more = self.others.values() if self.others.metrics else {}
        found = {**more, **found}
        return {name: found[name] for name in ("loss", *self.task.metrics)}
