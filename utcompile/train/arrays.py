"""Images and labels from the arrays of an `.npz` file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from utcompile.errors import UtcError, did_you_mean
from utcompile.train.array_sizes import check_sizes
from utcompile.train.array_targets import array_targets, facts_of_targets, need_arrays, split_arrays
from utcompile.train.dataset import Data, Preprocessing
from utcompile.train.split import check_several, stratified

HELD_OUT = ("val", "test")
MODES = ("bicubic", "bilinear", "nearest")


class Images(Dataset[tuple[Tensor, object]]):
    """Arrays as a dataset; resized and normalised when they are read, a batch at a time.

    Args:
        x: uint8, or floats in [0, 1], `(N, C, H, W)` with 1 or 3 channels.
        y: integers `(N,)`; or numbers `(N, K)`; or masks `(N, H, W)`, which are resized with the images.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, how: Preprocessing) -> None:
        self.x, self.y, self.how = x, y, how
        self.mean, self.std = (torch.tensor(values).view(1, -1, 1, 1) for values in (how.mean, how.std))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, object]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, object]]:
        """What a `DataLoader` calls with the indices of a batch."""
        chosen = self.x[np.asarray(indices)]
        images = torch.from_numpy(chosen).float()
        if chosen.dtype == np.uint8:
            images = images / 255
        channels, *size = self.how.input_size
        if images.shape[-2:] != tuple(size):
            if self.how.interpolation == "nearest":
                images = F.interpolate(images, size, mode="nearest")
            else:
                images = F.interpolate(images, size, mode=self.how.interpolation, antialias=True, align_corners=False)
                images = images.clamp(0, 1)  # bicubic overshoots
        images = (images.expand(-1, channels, -1, -1) - self.mean) / self.std
        return list(zip(images, self._targets(np.asarray(indices)), strict=True))

    def _targets(self, indices: np.ndarray) -> Sequence[object]:
        chosen = self.y[indices]
        if chosen.ndim == 1:
            labels: list[int] = chosen.tolist()
            return labels
        targets = torch.from_numpy(chosen)
        if targets.ndim == 3 and targets.shape[1:] != self.how.input_size[1:]:
            resized = F.interpolate(targets[:, None].float(), self.how.input_size[1:], mode="nearest")
            targets = resized[:, 0].to(targets.dtype)
        return list(targets)


def load_arrays(path: Path, how: Preprocessing, *, seed: int, task: str = "classify", measured: bool = False) -> Data:
    """Read an `.npz` file; see `load_data` for what it contains.

    Args:
        measured: the data is measured and not trained on, so it may lack classes, and need not be split.

    Raises:
        UtcError: not an `.npz`, missing keys, pickled objects, wrong ranks, lengths, channels, ranges or labels.
    """
    if how.interpolation not in MODES:
        raise UtcError(
            f"arrays cannot be resized with interpolation {how.interpolation!r}",
            fix=did_you_mean(how.interpolation, MODES),
            code="train/settings",
        )
    arrays = read_arrays(path)
    if task != "classify":
        return _other(path, arrays, how, seed, task, measured)
    if "x_train" in arrays or "y_train" in arrays:
        held = next((name for name in HELD_OUT if f"x_{name}" in arrays or f"y_{name}" in arrays), None)
        if held is None:
            need_arrays(path, arrays, "x_val", "y_val")
        x, y = _checked(path, arrays, "x_train", "y_train", how)
        x_held, y_held = _checked(path, arrays, f"x_{held}", f"y_{held}", how)
        if y_held.max() > y.max():
            raise UtcError(
                f"y_{held} has the label {y_held.max()}, which no training sample has",
                where=str(path),
                why=f"y_train runs from 0 to {y.max()}",
                code="data/labels",
            )
    else:
        x, y = _checked(path, arrays, "x", "y", how)
        train, validation = stratified(y, seed, whole=measured)
        x, y, x_held, y_held = x[train], y[train], x[validation], y[validation]
    classes = int(max(labels.max(initial=0) for labels in (y, y_held))) + 1
    present = np.unique(y)
    if len(present) != classes and not measured:
        missing = sorted(set(range(classes)) - set(present.tolist())) if classes < 10_000 else []
        raise UtcError(
            f"the labels leave gaps: {len(present)} distinct values up to {classes - 1}",
            where=str(path),
            why=f"without training samples: {', '.join(map(str, missing[:10]))}" if missing else None,
            fix="number the classes from 0 on: y = np.unique(y, return_inverse=True)[1]",
            code="data/labels",
        )
    names = tuple(str(label) for label in range(classes))
    if not measured:
        check_several(names, path)
    return Data(
        Images(x, y, how),
        Images(x_held, y_held, how),
        classes,
        names,
        counts=tuple(np.bincount(y, minlength=classes).tolist()),
        drawn="x_train" not in arrays,
        preprocessing=how.as_dict("squash"),
    )


def _other(path: Path, arrays: dict[str, np.ndarray], how: Preprocessing, seed: int, task: str, measured: bool) -> Data:
    """Data of the tasks other than `classify`: `y` is `(N, K)` of 0 and 1, of numbers, or `(N, H, W)` of classes."""
    (x, y), held = split_arrays(path, arrays)
    parts = []
    for (x_name, x_part), (y_name, y_part) in filter(None, ((x, y), held)):
        images = _images(path, x_name, x_part, how.input_size[0])
        targets = array_targets(path, y_name, y_part, task, images.shape[2:])
        if len(images) != len(targets):
            raise UtcError(
                f"{x_name} holds {len(images)} images and {y_name} {len(targets)} targets",
                where=str(path),
                code="data/labels",
            )
        parts.append((images, targets))
    images, targets = parts[0]
    if len(parts) == 1:
        kept, rest = stratified(np.zeros(len(images), dtype=int), seed, whole=measured)
        parts = [(images[kept], targets[kept]), (images[rest], targets[rest])]
    facts = facts_of_targets(path, [targets for _, targets in parts], task, measured=measured)
    train, validation = (Images(images, targets, how) for images, targets in parts)
    return Data(
        train,
        validation,
        len(facts["class_names"]),
        task=task,
        drawn=held is None,
        preprocessing=how.as_dict("squash"),
        **facts,
    )


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    name = ""
    try:
        # Opened here, for numpy leaves the file open when it is no archive.
        with path.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise UtcError(
                    "the file is not an .npz archive",
                    where=str(path),
                    fix="write it with np.savez",
                    code="data/damaged",
                )
            check_sizes(path, stream)
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                for name in file.files:
                    arrays[name] = file[name]
    except ValueError as error:  # numpy's word for an object array, and for a damaged header
        objects = "allow_pickle" in str(error)
        raise UtcError(
            f"the array {name!r} holds Python objects" if objects else f"the array {name!r} cannot be read",
            where=str(path),
            why="reading it would run code from the file" if objects else str(error).splitlines()[0],
            fix="save plain numbers: np.savez(path, x=x.astype(np.uint8), y=y.astype(np.int64))",
            code="data/damaged",
        ) from error
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise UtcError(
            "the file is damaged", where=str(path), why=str(error), fix="write it again", code="data/damaged"
        ) from error
    return arrays


def _checked(
    path: Path, arrays: dict[str, np.ndarray], x_name: str, y_name: str, how: Preprocessing
) -> tuple[np.ndarray, np.ndarray]:
    need_arrays(path, arrays, x_name, y_name)
    y = _labels(path, y_name, arrays[y_name])
    x = _images(path, x_name, arrays[x_name], how.input_size[0])
    if len(x) != len(y):
        raise UtcError(
            f"{x_name} holds {len(x)} images and {y_name} {len(y)} labels", where=str(path), code="data/labels"
        )
    if not len(x):
        raise UtcError(f"{x_name} is empty", where=str(path), code="data/shape")
    return x, y


def _images(path: Path, name: str, x: np.ndarray, channels: int) -> np.ndarray:
    shape = f"{name} is of shape {x.shape}"
    if x.ndim not in (3, 4):
        raise UtcError(shape, where=str(path), fix="give (N, H, W), (N, H, W, C) or (N, C, H, W)", code="data/shape")
    if x.ndim == 3:
        x = x[:, None]
    else:
        first, last = x.shape[1] in (1, 3), x.shape[3] in (1, 3)
        if first == last:
            raise UtcError(
                shape,
                where=str(path),
                why="both the second and the last axis could be the channels"
                if first
                else "no axis is 1 or 3 channels",
                fix="give (N, H, W, C) or (N, C, H, W) with 1 or 3 channels",
                code="data/shape",
            )
        if last:
            x = np.moveaxis(x, 3, 1)
    if 0 in x.shape[2:]:
        raise UtcError(shape, where=str(path), why="its images have no pixel", code="data/shape")
    if x.shape[1] > channels:
        raise UtcError(shape, where=str(path), why="its images have 3 channels, the model takes 1", code="data/shape")
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind != "f":
        raise UtcError(
            f"{name} is {x.dtype}",
            where=str(path),
            fix="give uint8 in 0 to 255, or floats in [0, 1]",
            code="data/shape",
        )
    if x.size and not (x.min() >= 0 and x.max() <= 1):  # false for nan too
        raise UtcError(
            f"{name} runs from {x.min():g} to {x.max():g}",
            where=str(path),
            fix="give floats in [0, 1], not normalised, or uint8: x.astype(np.uint8)",
            code="data/shape",
        )
    return x.astype(np.float32, copy=False)


def _labels(path: Path, name: str, y: np.ndarray) -> np.ndarray:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise UtcError(
            f"{name} is of shape {y.shape}", where=str(path), fix="give one integer per sample: (N,)", code="data/shape"
        )
    if y.dtype.kind not in "iu":
        raise UtcError(
            f"{name} is {y.dtype}",
            where=str(path),
            fix=f"number the classes from 0 on: np.unique({name}, return_inverse=True)[1]"
            if y.dtype.kind in "USO"
            else f"give integers from 0 on: {name}.astype(np.int64)",
            code="data/shape",
        )
    if y.size and y.min() < 0:
        raise UtcError(
            f"{name} has the negative label {y.min()}",
            where=str(path),
            fix="number the classes from 0 on",
            code="data/labels",
        )
    if y.size and y.max() > np.iinfo(np.int64).max:
        raise UtcError(
            f"{name} has the label {y.max()}", where=str(path), fix="number the classes from 0 on", code="data/labels"
        )
    return y.astype(np.int64)
