"""The tasks by their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from utcompile.errors import UtcError, did_you_mean
from utcompile.train.dataset import Data
from utcompile.train.tasks.base import Task
from utcompile.train.tasks.classify import Classify
from utcompile.train.tasks.custom import Custom, Loss, Metrics
from utcompile.train.tasks.measured import CLASSIFICATION, MULTILABEL, REGRESSION, check_metrics
from utcompile.train.tasks.multilabel import Multilabel
from utcompile.train.tasks.regress import Regress
from utcompile.train.tasks.segment import SEGMENTATION, Segment

TASKS = ("classify", "multilabel", "regress", "segment", "text", "custom")
METRICS: Mapping[str, tuple[str, ...]] = {
    "classify": tuple(CLASSIFICATION),
    "text": tuple(CLASSIFICATION),
    "multilabel": tuple(MULTILABEL),
    "regress": tuple(REGRESSION),
    "segment": SEGMENTATION,
}


def make_task(
    data: Data,
    *,
    metrics: Sequence[str] = (),
    label_smoothing: float = 0.0,
    class_weights: str = "none",
    loss: Loss | None = None,
    measure: Metrics | None = None,
    higher: bool = True,
) -> Task:
    """The task of some data.

    Args:
        metrics: names of `METRICS[data.task]`; the task's own by default. The first one chooses the best epoch.
        class_weights: `balanced` weighs each class by the inverse of its number of samples (segment: of pixels).
        loss, measure, higher: of a custom task; the first of `metrics` then names an entry of what `measure` returns.

    Raises:
        UtcError: no such task or metric, or a setting that the task does not have.
    """
    if data.task not in TASKS:
        raise UtcError(f"unknown task {data.task!r}", fix=did_you_mean(data.task, TASKS), code="train/settings")
    chosen: dict[str, Any] = {"metrics": tuple(metrics)} if metrics else {}
    if data.task == "custom":
        if label_smoothing or class_weights != "none":
            name = "label_smoothing" if label_smoothing else "class_weights"
            raise UtcError(
                f"a custom task has no {name}", fix="leave it out, or put it into your loss", code="train/settings"
            )
        return _custom(loss, measure, tuple(metrics), higher)
    check_metrics(metrics, METRICS[data.task], data.task)
    if label_smoothing and data.task not in ("classify", "text"):
        raise UtcError(
            f"the task {data.task!r} has no label smoothing", fix="leave out label_smoothing", code="train/settings"
        )
    weights = _weights(data) if class_weights == "balanced" else None
    makers: dict[str, Callable[[], Task]] = {
        "multilabel": lambda: Multilabel(data.num_classes, weights, **chosen),
        "segment": lambda: Segment(data.num_classes, weights, **chosen),
        "regress": lambda: Regress(data.num_classes, *_standard(data), **chosen),
    }
    if data.task in makers:
        return makers[data.task]()
    return Classify(data.num_classes, label_smoothing, weights, **chosen, name=data.task)


def _custom(loss: Loss | None, measure: Metrics | None, metrics: tuple[str, ...], higher: bool) -> Task:
    if loss is None:
        raise UtcError("a custom task needs a loss function", fix="give loss=FILE.py:FUNCTION", code="train/task")
    if measure is None:
        return Custom(loss)
    if not metrics:
        raise UtcError(
            "a custom task with metrics needs the name of the one that chooses the best epoch",
            fix="give metric=NAME, an entry of what the metrics function returns",
            code="train/task",
        )
    return Custom(loss, measure, metrics, higher)


def _weights(data: Data) -> Tensor:
    if data.counts is None or data.task == "regress":
        raise UtcError(
            f"class weights are not possible for the task {data.task!r}",
            why="the data has no classes to count",
            fix="give class_weights=none",
            code="train/settings",
        )
    counts = torch.tensor(data.counts, dtype=torch.float32)
    if data.task == "multilabel":  # how many negative samples there are per positive one
        return (data.samples - counts).clamp_min(1) / counts.clamp_min(1)
    weights = counts.sum() / (len(counts) * counts.clamp_min(1))
    return torch.where(counts > 0, weights, torch.zeros(()))


def _standard(data: Data) -> tuple[Tensor, Tensor]:
    if data.standard is None:
        return torch.zeros(data.num_classes), torch.ones(data.num_classes)
    mean, std = (torch.tensor(values, dtype=torch.float32) for values in data.standard)
    return mean, std
