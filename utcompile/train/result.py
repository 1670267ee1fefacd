"""How a run went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from utcompile.errors import UtcError


@dataclass(frozen=True)
class TrainResult:
    """How a run went.

    Attributes:
        best: the best value of `metric` on the validation data.
        best_epoch: the epoch that reached it, of several the one with the least validation loss.
        history: one entry per epoch: `epoch, train_loss, validation_loss, validation_…, lr, seconds`.
        seconds: the whole run's time, of all its parts where it was resumed.
        metric: what the best epoch was chosen by: `accuracy` for classification.
        epochs: how many were planned; there are fewer in the history where the run stopped early.
    """

    best: float
    best_epoch: int
    history: tuple[dict[str, float], ...]
    seconds: float
    metric: str = "accuracy"
    epochs: int = 0

    @property
    def best_accuracy(self) -> float:
        """The accuracy of the best epoch, in [0, 1].

        Raises:
            UtcError: the task measures no accuracy.
        """
        entry = self.history[self.best_epoch - 1]
        if "validation_accuracy" not in entry:
            raise UtcError(
                f"this run measured {self.metric}, not accuracy", fix="read `result.best`", code="train/task"
            )
        return entry["validation_accuracy"]

    def __str__(self) -> str:
        value = f"{self.best:.2%}" if self.metric in SHARES else f"{self.best:.4g}"
        return (
            f"best validation {self.metric.replace('_', ' ')} {value} in epoch {self.best_epoch} of "
            f"{len(self.history)}, {self.seconds:.1f} s"
        )


SHARES = frozenset("accuracy balanced_accuracy top5_accuracy f1 iou pixel_accuracy".split())  # written as percentages


def best_of(history: Sequence[dict[str, float]], metric: str, *, higher: bool) -> dict[str, float]:
    """The entry of the best epoch; of equal ones that with the least validation loss, and then the first.

    An epoch whose metric is not a number is never the best.
    """
    key = f"validation_{metric}"

    def rank(entry: dict[str, float]) -> tuple[float, float]:
        value = entry[key] if higher else -entry[key]
        return (value if value == value else float("-inf")), -entry.get("validation_loss", 0.0)

    return max(history, key=rank)


def stops_early(history: Sequence[dict[str, float]], metric: str, *, higher: bool, patience: int | None) -> bool:
    """Whether the last `patience` epochs were no better than one before them."""
    if patience is None or not history:
        return False
    return len(history) - best_of(history, metric, higher=higher)["epoch"] >= patience
