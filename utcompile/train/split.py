"""A stratified split of samples into training and validation, the same for the same seed on every machine."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from utcompile.errors import UtcError


def stratified(labels: ArrayLike, seed: int, share: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and validation samples, `(N - V,)` and `(V,)`, ascending.

    Of every class `share` of the samples, rounded and at least one, is held out; a class of one sample is trained on.

    Raises:
        UtcError: no class has two samples, so nothing can be held out.

    >>> train, validation = stratified([0] * 10 + [1] * 20, seed=0)
    >>> len(train), len(validation)
    (27, 3)
    """
    classes = np.asarray(labels)
    random = np.random.default_rng(seed)
    held = np.zeros(len(classes), dtype=bool)
    for label in np.unique(classes):
        rows = random.permutation(np.flatnonzero(classes == label))
        if len(rows) > 1:
            held[rows[: max(1, round(share * len(rows)))]] = True
    if not held.any():
        raise UtcError(
            "no sample can be held out for validation",
            why="every class has a single sample",
            fix="give separate validation data, or at least two samples per class",
            code="data/labels",
        )
    return np.flatnonzero(~held), np.flatnonzero(held)
