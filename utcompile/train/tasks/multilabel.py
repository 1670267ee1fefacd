"""Any number of labels per sample."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from utcompile.train.tasks.base import Measures, Meter, check_outputs, tensor_in
from utcompile.train.tasks.measured import is_higher, multilabel


@dataclass(frozen=True, eq=False)
class Multilabel:
    """Binary cross-entropy per label on logits `(B, labels)`; targets are 0 and 1, `(B, labels)`.

    Args:
        weights: of the labels' positive samples in the training loss, `(labels,)`.
    """

    num_classes: int
    weights: Tensor | None = None
    metrics: tuple[str, ...] = ("f1", "average_precision")
    name: str = "multilabel"

    @property
    def higher(self) -> bool:
        return is_higher(self.metrics[0])

    def predictions(self, output: object, targets: Tensor) -> Tensor:
        """Logits `(B, labels)`."""
        logits = tensor_in(output, 2, "logits (B, labels)")
        check_outputs(logits.shape[1], self.num_classes, "labels", exactly=True)
        return logits

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        weights = None if self.weights is None else self.weights.to(predictions.device)
        return F.binary_cross_entropy_with_logits(predictions, targets.float(), pos_weight=weights)

    def meter(self) -> Meter:
        return _Whole(self)


class _Whole(Measures):
    """torchmetrics takes multilabel targets as integers."""

    def __init__(self, task: Multilabel) -> None:
        def loss(predictions: Tensor, targets: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(predictions, targets.float())

        super().__init__(loss, multilabel(task.metrics, task.num_classes), lambda found: found.sigmoid())

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        super().update(predictions, targets.long())
