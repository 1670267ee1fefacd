"""The metrics of each task: torchmetrics by the names that users write."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from utcompile.errors import UtcError, did_you_mean
from utcompile.train.tasks.base import Metric

_LOWER = frozenset({"mae", "mse", "rmse", "loss"})
_Table = Mapping[str, Callable[[ModuleType, int], Metric]]

CLASSIFICATION: _Table = {
    "accuracy": lambda m, n: m.MulticlassAccuracy(n, average="micro"),
    "balanced_accuracy": lambda m, n: _Defined(m.MulticlassRecall(n, average="none")),
    "top5_accuracy": lambda m, n: m.MulticlassAccuracy(n, average="micro", top_k=min(5, n)),
    "f1": lambda m, n: m.MulticlassF1Score(n, average="macro"),
    "auroc": lambda m, n: _Defined(m.MulticlassAUROC(n, average="none"), with_others=True),
    "mcc": lambda m, n: m.MulticlassMatthewsCorrCoef(n),
}
MULTILABEL: _Table = {
    "f1": lambda m, n: m.MultilabelF1Score(n, average="macro"),
    "accuracy": lambda m, n: m.MultilabelAccuracy(n, average="macro"),
    "average_precision": lambda m, n: _Defined(m.MultilabelAveragePrecision(n, average="none")),
    "auroc": lambda m, n: _Defined(m.MultilabelAUROC(n, average="none"), with_others=True),
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


def classification(names: Iterable[str], classes: int) -> dict[str, Metric]:
    """Metrics of logits `(B, classes)` and labels `(B,)`."""
    return _made(names, CLASSIFICATION, "torchmetrics.classification", classes)


def multilabel(names: Iterable[str], labels: int) -> dict[str, Metric]:
    """Metrics of probabilities and targets `(B, labels)`."""
    return _made(names, MULTILABEL, "torchmetrics.classification", labels)


def regression(names: Iterable[str], targets: int) -> dict[str, Metric]:
    """Metrics of predictions and targets `(B, targets)`."""
    return {name: _Mean(m) for name, m in _made(names, REGRESSION, "torchmetrics.regression", targets).items()}


class _Defined:
    """The mean of a metric over the classes (or labels) for which it is defined: those that occur in the targets.

    torchmetrics counts 0 for the others, and warns.

    Args:
        metric: with one value per class.
        with_others: only over classes that some samples do not have, too.
    """

    def __init__(self, metric: Metric, *, with_others: bool = False) -> None:
        self.metric, self.with_others = metric, with_others
        self.occur: Tensor | int = 0
        self.samples = 0

    def to(self, device: torch.device) -> _Defined:
        self.metric = self.metric.to(device)
        return self

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        self.metric.update(predictions, targets)
        flags = targets if targets.ndim > 1 else one_hot(targets, predictions.shape[1])
        self.occur, self.samples = self.occur + flags.sum(0).cpu(), self.samples + len(targets)

    def compute(self) -> Tensor:
        """The mean; not a number where it is defined for no class."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of the classes that do not count here
            values = self.metric.compute().cpu()
        occur = torch.as_tensor(self.occur)
        return values[(occur > 0) & ((occur < self.samples) if self.with_others else True)].mean()


class _Mean:
    """A metric whose value is the mean over its outputs."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric

    def to(self, device: torch.device) -> _Mean:
        self.metric = self.metric.to(device)
        return self

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        self.metric.update(predictions, targets)

    def compute(self) -> Tensor:
        """The mean; not a number where there are too few samples for one (R² needs two)."""
        try:
            return self.metric.compute().mean()
        except ValueError:
            return torch.tensor(float("nan"))


def check_metrics(names: Iterable[str], known: Iterable[str], task: str) -> None:
    """Raise where a task has no such metric."""
    for name in names:
        if name not in known:
            raise UtcError(
                f"the task {task!r} has no metric {name!r}", fix=did_you_mean(name, known), code="train/settings"
            )


def _made(names: Iterable[str], table: _Table, module: str, outputs: int) -> dict[str, Metric]:
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
