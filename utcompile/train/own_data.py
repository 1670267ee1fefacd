"""Data for custom tasks: any arrays, or whatever a user's function makes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from utcompile.errors import UtcError
from utcompile.train.array_targets import split_arrays
from utcompile.train.arrays import read_arrays
from utcompile.train.dataset import Data
from utcompile.train.split import stratified


class Arrays(Dataset[tuple[object, Tensor]]):
    """Arrays of inputs and targets, as tensors; several inputs are given by name."""

    def __init__(self, inputs: Mapping[str, np.ndarray] | np.ndarray, targets: np.ndarray) -> None:
        self.inputs, self.targets = inputs, torch.from_numpy(targets)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[object, Tensor]:
        if isinstance(self.inputs, Mapping):
            return {name: torch.from_numpy(a[index, ...].copy()) for name, a in self.inputs.items()}, self.targets[
                index
            ]
        return torch.from_numpy(np.asarray(self.inputs[index])), self.targets[index]


def load_own_arrays(path: Path, *, seed: int, measured: bool = False) -> Data:
    """Read an `.npz` file with `x` and `y` (or `x_train` …) of any shape and kind of number.

    Raises:
        UtcError: arrays are missing, of another kind, or of different lengths.
    """
    (x, y), held = split_arrays(path, read_arrays(path))
    for (x_name, x_array), (y_name, y_array) in filter(None, ((x, y), held)):
        sizes = {array.shape[0] if array.ndim else -1 for array in (x_array, y_array)}
        if x_array.dtype.kind not in "iubf" or y_array.dtype.kind not in "iubf" or len(sizes) > 1 or -1 in sizes:
            raise UtcError(
                f"{x_name} and {y_name} do not fit each other",
                where=str(path),
                why=f"{x_name} is {x_array.dtype} {x_array.shape}, {y_name} is {y_array.dtype} {y_array.shape}",
                fix="give numbers, as many inputs as targets",
                code="data/shape",
            )
    if held is not None:
        parts = [(x[1], y[1]), (held[0][1], held[1][1])]
    else:
        kept, rest = stratified(np.zeros(len(x[1]), dtype=int), seed, whole=measured)
        parts = [(x[1][rows], y[1][rows]) for rows in (kept, rest)]
    train, validation = (Arrays(inputs, targets) for inputs, targets in parts)
    return Data(train, validation, 0, (), "custom", drawn=held is None)


def data_of(made: object, task: str, where: str) -> Data:
    """What a user's function returned, as data: a `Data`, or a pair of datasets.

    Raises:
        UtcError: it is neither.
    """
    if isinstance(made, Data):
        return made
    if isinstance(made, tuple) and len(made) == 2 and all(hasattr(d, "__getitem__") for d in made):
        return Data(made[0], made[1], 0, (), task)
    raise UtcError(
        f"the data function returned a {type(made).__name__}",
        where=where,
        fix="return two datasets of (input, target), for training and validation, or a utcompile.train.Data",
        code="data/shape",
    )
