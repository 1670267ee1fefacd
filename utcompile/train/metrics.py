"""Measuring a model on a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from utcompile.errors import UtcError
from utcompile.modes import evaluating
from utcompile.train.tasks import Classify, Task

T = TypeVar("T")


def accuracy(model: nn.Module, dataset: Dataset[object], batch_size: int = 64, *, workers: int = 0) -> float:
    """The share of samples whose largest logit is at their label, in [0, 1]; on the device of the model.

    Args:
        model: images `(B, C, H, W)` to logits `(B, classes)`; run in eval mode, its modes are restored.
        dataset: pairs of image and label, at least one.

    Raises:
        UtcError: the dataset is empty, or the model returns no logits.
    """
    task = Classify(0)  # of as many classes as the model has
    return measure(model, DataLoader(dataset, batch_size, num_workers=workers), task)["accuracy"]


def measure(model: nn.Module, batches: Iterable[tuple[object, Tensor]], task: Task) -> dict[str, float]:
    """`loss` and the task's metrics over batches of inputs and targets, in eval mode; the modes are restored."""
    meter, device = task.meter(), device_of(model)
    samples = 0
    with evaluating(model):
        for inputs, targets in batches:
            targets = targets.to(device)
            meter.update(task.predictions(called(model, moved(inputs, device)), targets), targets)
            samples += len(targets)
    if not samples:
        raise UtcError("there is no sample to measure accuracy on", code="data/not-found")
    return meter.values()


def called(model: nn.Module, inputs: object) -> object:
    """What a model returns for a batch of inputs: a tensor, several in order, or several by name."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def moved(value: T, device: torch.device) -> T:
    """Inputs or targets on a device."""
    if isinstance(value, Mapping):
        return cast("T", {name: moved(entry, device) for name, entry in value.items()})
    if isinstance(value, (tuple, list)):
        return cast("T", tuple(moved(entry, device) for entry in value))
    return cast("T", cast("Tensor", value).to(device, non_blocking=True))


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
