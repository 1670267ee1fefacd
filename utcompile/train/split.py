"""A stratified split of samples into training and validation, the same for the same seed on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from utcompile.errors import UtcError


def stratified(
    labels: ArrayLike, seed: int, share: float = 0.1, *, whole: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and validation samples, `(N - V,)` and `(V,)`, ascending.

    Of every class `share` of the samples, rounded and at least one, is held out; a class of one sample is trained on.

    Args:
        whole: all samples are held out, of data that is only measured.

    Raises:
        UtcError: no class has two samples, so nothing can be held out.

    >>> train, validation = stratified([0] * 10 + [1] * 20, seed=0)
    >>> len(train), len(validation)
    (27, 3)
    """
    classes = np.asarray(labels)
    if whole:
        return np.arange(0), np.arange(len(classes))
    random = np.random.default_rng(seed)
    held = np.zeros(len(classes), dtype=bool)
    for label in np.unique(classes):
        rows = random.permutation(np.flatnonzero(classes == label))
        if len(rows) > 1:
            held[rows[: max(1, round(share * len(rows)))]] = True
    if not held.any():
        raise UtcError(
            "no sample can be held out for validation",
            why="every class has a single sample" if len(classes) > 1 else f"samples: {len(classes)}",
            fix="give separate validation data, or at least two samples per class",
            code="data/labels",
        )
    return np.flatnonzero(~held), np.flatnonzero(held)


def check_several(names: Sequence[str], path: Path) -> None:
    """Refuse to train on a single class, or on one whose name no file can have.

    Raises:
        UtcError: as above.
    """
    if len(names) < 2:
        raise UtcError(
            f"all samples have the label {names[0]!r}",
            where=str(path),
            fix="give samples of two classes or more; of a table, --label-column names another column",
            code="data/labels",
        )
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:  # of a folder in another encoding, or of "\\ud800" in JSON
            raise UtcError(
                f"the name {name!r} of a class is no valid Unicode",
                where=str(path),
                fix="rename it",
                code="data/labels",
            ) from error
