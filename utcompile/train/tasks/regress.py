"""Numbers per sample."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from utcompile.train.tasks.base import Measures, Meter, check_outputs, tensor_in
from utcompile.train.tasks.measured import is_higher, regression


@dataclass(frozen=True, eq=False)
class Regress:
    """Mean squared error on standardised targets, measured in the targets' own units.

    The head is trained on `(target - mean) / std`, so that the learning rate does not depend on the units. The model
    returns standardised numbers; `mean` and `std` are in the run's `task.json`.

    Args:
        num_classes: how many numbers per sample.
        mean, std: of the training targets, `(targets,)` each.
    """

    num_classes: int
    mean: Tensor
    std: Tensor
    metrics: tuple[str, ...] = ("mae", "r2")
    name: str = "regress"

    @property
    def higher(self) -> bool:
        return is_higher(self.metrics[0])

    def predictions(self, output: object, targets: Tensor) -> Tensor:
        """Standardised numbers `(B, targets)`."""
        found = tensor_in(output, None, "numbers (B, targets)")
        if found.ndim == 1:
            found = found[:, None]
        if found.ndim != 2:
            tensor_in(found, 2, "numbers (B, targets)")
        check_outputs(found.shape[1], self.num_classes, "targets", exactly=True)
        return found

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        mean, std = (values.to(predictions.device) for values in (self.mean, self.std))
        return F.mse_loss(predictions, (targets.float() - mean) / std)

    def restored(self, predictions: Tensor) -> Tensor:
        """Predictions in the targets' own units."""
        return predictions * self.std.to(predictions.device) + self.mean.to(predictions.device)

    def meter(self) -> Meter:
        return _Restored(self)


class _Restored(Measures):
    def __init__(self, task: Regress) -> None:
        super().__init__(task.loss, regression(task.metrics, task.num_classes), task.restored)

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        super().update(predictions, targets.float())
