"""The metrics of each task: torchmetrics by the names that users write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from utcompile.errors import UtcError, did_you_mean

_LOWER = frozenset({"mae", "mse", "rmse", "loss"})
_Table = Mapping[str, Callable[[Any, int], Any]]

CLASSIFICATION: _Table = {
    "accuracy": lambda m, n: m.MulticlassAccuracy(n, average="micro"),
    "balanced_accuracy": lambda m, n: m.MulticlassAccuracy(n, average="macro"),
    "top5_accuracy": lambda m, n: m.MulticlassAccuracy(n, average="micro", top_k=min(5, n)),
    "f1": lambda m, n: m.MulticlassF1Score(n, average="macro"),
    "auroc": lambda m, n: m.MulticlassAUROC(n, average="macro"),
    "mcc": lambda m, n: m.MulticlassMatthewsCorrCoef(n),
}
MULTILABEL: _Table = {
    "f1": lambda m, n: m.MultilabelF1Score(n, average="macro"),
    "accuracy": lambda m, n: m.MultilabelAccuracy(n, average="macro"),
    "average_precision": lambda m, n: m.MultilabelAveragePrecision(n, average="macro"),
    "auroc": lambda m, n: m.MultilabelAUROC(n, average="macro"),
}
REGRESSION: _Table = {
    "mae": lambda m, n: m.MeanAbsoluteError(num_outputs=n),
    "mse": lambda m, n: m.MeanSquaredError(num_outputs=n),
    "rmse": lambda m, n: m.MeanSquaredError(num_outputs=n, squared=False),
    "r2": lambda m, n: m.R2Score(),
}


def is_higher(metric: str) -> bool:
    """Whether more of a metric is better."""
    return metric not in _LOWER


def classification(names: Iterable[str], classes: int) -> dict[str, Any]:
    """Metrics of logits `(B, classes)` and labels `(B,)`."""
    return _made(names, CLASSIFICATION, "torchmetrics.classification", classes)


def multilabel(names: Iterable[str], labels: int) -> dict[str, Any]:
    """Metrics of probabilities and targets `(B, labels)`."""
    return _made(names, MULTILABEL, "torchmetrics.classification", labels)


def regression(names: Iterable[str], targets: int) -> dict[str, Any]:
    """Metrics of predictions and targets `(B, targets)`."""
    return {name: _Mean(m) for name, m in _made(names, REGRESSION, "torchmetrics.regression", targets).items()}


class _Mean:
    """A metric whose value is the mean over its outputs."""

    def __init__(self, metric: Any) -> None:
        self.metric = metric

    def to(self, device: object) -> _Mean:
        self.metric = self.metric.to(device)
        return self

    def update(self, predictions: Any, targets: Any) -> None:
        self.metric.update(predictions, targets)

    def compute(self) -> float:
        """The mean; not a number where there are too few samples for one (R² needs two)."""
        try:
            return float(self.metric.compute().mean())
        except ValueError:
            return float("nan")


def check_metrics(names: Iterable[str], known: Iterable[str], task: str) -> None:
    """Raise where a task has no such metric."""
    for name in names:
        if name not in known:
            raise UtcError(
                f"the task {task!r} has no metric {name!r}", fix=did_you_mean(name, known), code="train/settings"
            )


def _made(names: Iterable[str], table: _Table, module: str, outputs: int) -> dict[str, Any]:
    names = tuple(names)
    if not names:
        return {}
    import importlib

    try:
        metrics = importlib.import_module(module)
    except ImportError as error:
        raise UtcError(
            f"the metric {names[0]} needs the package torchmetrics",
            why=str(error),
            fix="pip install 'utcompile[train]'",
            code="train/needs",
        ) from error
    return {name: table[name](metrics, outputs) for name in names}
