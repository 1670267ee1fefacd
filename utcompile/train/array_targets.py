"""Targets in arrays: labels `(N, K)` of 0 and 1, numbers `(N, K)`, masks `(N, H, W)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from utcompile.errors import UtcError
from utcompile.plain_data import JsonObject
from utcompile.train.mask_classes import check_classes
from utcompile.train.tasks import IGNORED

HELD_OUT = ("val", "test")
_Named = tuple[str, np.ndarray]


def split_arrays(
    path: Path, arrays: Mapping[str, np.ndarray]
) -> tuple[tuple[_Named, _Named], tuple[_Named, _Named] | None]:
    """`x_train` and `y_train` with the held-out pair, or `x` and `y` alone, each with its name.

    Raises:
        UtcError: one of them is missing.
    """
    whole = "x_train" not in arrays and "y_train" not in arrays
    first = ("x", "y") if whole else ("x_train", "y_train")
    held = None if whole else next((n for n in HELD_OUT if f"x_{n}" in arrays or f"y_{n}" in arrays), "val")
    wanted = [first] + ([] if held is None else [(f"x_{held}", f"y_{held}")])
    need_arrays(path, arrays, *(name for pair in wanted for name in pair))
    pairs = [((x, arrays[x]), (y, arrays[y])) for x, y in wanted]
    return pairs[0], pairs[1] if len(pairs) > 1 else None


def need_arrays(path: Path, arrays: Mapping[str, np.ndarray], *names: str) -> None:
    """Refuse a file without arrays of these names."""
    missing = [name for name in names if name not in arrays]
    if missing:
        raise UtcError(
            f"the .npz file lacks {' and '.join(map(repr, missing))}",
            where=str(path),
            why=f"it holds {', '.join(sorted(arrays)) or 'nothing'}",
            fix="save x and y, or x_train, y_train with x_val, y_val (or x_test, y_test)",
            code="data/shape",
        )


def array_targets(path: Path, name: str, y: np.ndarray, task: str, size: Sequence[int]) -> np.ndarray:
    """Targets of a task, checked: float32 `(N, K)`, or int64 `(N, H, W)`.

    Raises:
        UtcError: their shape, kind or range does not fit the task.
    """
    wanted = {"multilabel": "0 and 1, (N, labels)", "regress": "numbers, (N,) or (N, targets)"}.get(
        task, f"classes from 0 on, (N, {size[0]}, {size[1]}) as the images"
    )

    def wrong(why: str) -> UtcError:
        return UtcError(
            f"{name} does not fit the task {task!r}", where=str(path), why=why, fix=f"give {wanted}", code="data/shape"
        )

    if task == "segment":
        if y.ndim != 3 or tuple(y.shape[1:]) != tuple(size):
            raise wrong(f"it is of shape {y.shape}")
        if y.dtype.kind not in "iub":
            raise wrong(f"it is {y.dtype}")
        if y.size and (y.min() < 0 or y.max() > IGNORED):
            raise wrong(f"it runs from {y.min()} to {y.max()}")
        return y.astype(np.int64)
    if task == "regress" and y.ndim == 1:
        y = y[:, None]
    if y.ndim != 2 or not y.shape[1]:
        raise wrong(f"it is of shape {y.shape}")
    if y.dtype.kind not in "iubf":
        raise wrong(f"it is {y.dtype}")
    if not np.isfinite(y).all():
        raise wrong("it contains nan or infinity")
    if task == "multilabel" and not np.isin(y, (0, 1)).all():
        raise wrong(f"it runs from {y.min():g} to {y.max():g}")
    return y.astype(np.float32)


def facts_of_targets(path: Path, parts: Sequence[np.ndarray], task: str, *, measured: bool = False) -> JsonObject:
    """Names, counts and the standard of training targets, as fields of `Data`.

    Args:
        measured: the data is measured and not trained on, so it may lack classes, and samples to train on.
    """
    train, held = parts
    if not len(held) or (not len(train) and not measured):
        raise UtcError("there is no sample", where=str(path), code="data/not-found")
    if not len(train):
        train = held
    if task == "segment":
        counted = np.sum([np.bincount(part.ravel(), minlength=IGNORED + 1) for part in parts], axis=0)[:IGNORED]
        classes = int(np.flatnonzero(counted).max(initial=0)) + 1
        if not measured:
            check_classes(set(np.flatnonzero(counted).tolist()), classes, path)
        counts = np.bincount(train.ravel(), minlength=IGNORED + 1)[:classes]
        return {"class_names": tuple(map(str, range(classes))), "counts": tuple(counts.tolist())}
    if train.shape[1] != held.shape[1]:
        raise UtcError(
            f"training has {train.shape[1]} targets per sample, validation {held.shape[1]}",
            where=str(path),
            code="data/shape",
        )
    names = tuple(map(str, range(train.shape[1])))
    if task == "multilabel":
        if not measured and not train.any(0).all():
            missing = int(train.any(0).argmin())
            raise UtcError(
                f"no training sample has the label {missing}",
                where=str(path),
                fix="give more samples, or leave out the label",
                code="data/labels",
            )
        return {"class_names": names, "counts": tuple(train.sum(0).astype(int).tolist())}
    mean, std = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    if (std == 0).any() and not measured:
        raise UtcError(f"all values of target {int(std.argmin())} are the same", where=str(path), code="data/labels")
    return {"class_names": names, "standard": (tuple(mean.tolist()), tuple(std.tolist()))}
