"""One class per pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from utcompile.errors import UtcError
from utcompile.train.tasks.base import Meter, check_outputs, tensor_in
from utcompile.train.tasks.measured import is_higher

IGNORED = 255  # the label of pixels that count neither in the loss nor in the metrics


@dataclass(frozen=True, eq=False)
class Segment:
    """Cross-entropy per pixel on logits `(B, classes, H, W)`; masks are `(B, H, W)`, and 255 is ignored.

    Logits of another size are resized to the masks, as SegFormer's, which are a quarter as large.

    Args:
        weights: of the classes in the training loss, `(classes,)`.
    """

    num_classes: int
    weights: Tensor | None = None
    metrics: tuple[str, ...] = ("iou", "pixel_accuracy")
    name: str = "segment"

    @property
    def higher(self) -> bool:
        return is_higher(self.metrics[0])

    def predictions(self, output: object, targets: Tensor) -> Tensor:
        """Logits `(B, classes, H, W)` at the masks' size."""
        logits = tensor_in(output, 4, "logits (B, classes, H, W)", ("out", "logits"))
        check_outputs(logits.shape[1], self.num_classes, "classes")
        if logits.shape[-2:] != targets.shape[-2:]:
            logits = F.interpolate(logits, targets.shape[-2:], mode="bilinear", align_corners=False)
        return logits

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        if not bool((targets != IGNORED).any()):
            return predictions.sum() * 0.0  # the mean over no pixel is not a number
        weights = self.weights
        if weights is not None:
            weights = F.pad(weights, (0, predictions.shape[1] - len(weights))).to(predictions.device)
        return F.cross_entropy(predictions, targets, weights, ignore_index=IGNORED)

    def counted(self, targets: Tensor) -> float:
        """The sum of the weights of a batch's pixels."""
        found = targets[targets != IGNORED]
        return float(found.numel() if self.weights is None else self.weights.to(found.device)[found].sum())

    def meter(self) -> Meter:
        return Confusion(self)


class Confusion:
    """Counts pixels by true and predicted class, `(classes, classes)`; exact whatever the batches are.

    `iou` is the mean over the classes that occur in the masks or the predictions.
    """

    def __init__(self, task: Segment) -> None:
        self.task, self.loss, self.samples = task, 0.0, 0  # the loss is a sum over pixels
        self.matrix = torch.zeros(task.num_classes, task.num_classes, dtype=torch.int64)

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        classes = self.task.num_classes
        self.loss += float(F.cross_entropy(predictions, targets, ignore_index=IGNORED, reduction="sum"))
        self.samples += len(targets)
        counted = targets != IGNORED
        found = predictions[:, :classes].argmax(1)[counted]
        pairs = targets[counted] * classes + found
        self.matrix += torch.bincount(pairs, minlength=classes**2).reshape(classes, classes).cpu()

    def values(self) -> dict[str, float]:
        if not self.samples:
            raise UtcError("there is no sample to measure on", code="data/not-found")
        pixels = max(1, int(self.matrix.sum()))
        right, true, said = self.matrix.diag(), self.matrix.sum(1), self.matrix.sum(0)
        union = true + said - right
        shares = right[union > 0] / union[union > 0]
        recalls = right[true > 0] / true[true > 0]
        found = {
            "iou": float(shares.mean()) if len(shares) else 0.0,
            "pixel_accuracy": float(right.sum() / pixels),
            "balanced_accuracy": float(recalls.mean()) if len(recalls) else 0.0,
        }
        return {"loss": self.loss / pixels, **{name: found[name] for name in self.task.metrics}}


SEGMENTATION = ("iou", "pixel_accuracy", "balanced_accuracy")
