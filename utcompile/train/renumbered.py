"""Data in the numbering of a run's classes, which other data of the same classes need not have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from utcompile.errors import UtcError
from utcompile.train.dataset import Data
from utcompile.train.tasks import IGNORED


def with_classes(data: Data, classes: tuple[str, ...]) -> Data:
    """Data with the run's classes, of which it may lack some."""
    if data.task in ("regress", "custom"):
        return data
    return replace(data, class_names=classes, num_classes=len(classes), counts=None)


class Renumbered(Dataset[Any]):
    """A dataset whose labels are those of a run, matched by the names of the classes.

    Masks whose classes have no names of their own have the run's numbers already.
    """

    def __init__(self, dataset: Any, data: Data, classes: tuple[str, ...]) -> None:
        self.dataset = dataset
        self.map: list[int] | None = None
        if data.task in ("regress", "custom") or data.class_names == classes or _is_numbered(data, classes):
            return
        strangers = [name for name in data.class_names if name not in classes]
        if strangers:
            raise UtcError(
                f"the data has the class {strangers[0]!r}, which the run does not have",
                why=f"the run has {', '.join(classes[:10])}{' …' if len(classes) > 10 else ''}",
                fix="name the classes as in training, or leave this one out",
                code="data/labels",
            )
        self.map = [classes.index(name) for name in data.class_names]
        self.task, self.count = data.task, len(classes)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        inputs, target = self.dataset[index]
        if self.map is None:
            return inputs, target
        if self.task == "multilabel":
            placed = target.new_zeros(self.count)
            placed[self.map] = target
            return inputs, placed
        return inputs, _mask(target, self.map) if self.task == "segment" else self.map[int(target)]


def _is_numbered(data: Data, classes: tuple[str, ...]) -> bool:
    """Whether the classes of masks are their numbers, all of which the run has."""
    numbers = tuple(map(str, range(len(data.class_names))))
    binary = data.class_names == ("background", "object") and classes == ("0", "1")
    return data.task == "segment" and len(data.class_names) <= len(classes) and (data.class_names == numbers or binary)


def _mask(target: Tensor, numbers: list[int]) -> Tensor:
    table = torch.arange(IGNORED + 1)
    table[: len(numbers)] = torch.tensor(numbers)
    return table[target]
