"""A second run of a part of the results gives the same figures, in another folder and in another order of methods."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.results import PARTS
from utcompile.cli.compare_methods import Methods

pytestmark = pytest.mark.full


def figures(out: Path, methods: tuple[str, ...]) -> dict[tuple[str, int], tuple[float, ...]]:
    """All of a part at a smaller budget but how long it took."""
    part, random = PARTS["digits"], np.random.default_rng(0)
    (out / "digits").parent.mkdir()
    arrays: dict[str, np.ndarray] = {}
    for name, count in (("train", 40), ("val", 20), ("test", 40)):
        y = np.arange(count) % 10
        arrays[f"x_{name}"] = (random.random((count, 8, 8)) * 60 + 20 * y[:, None, None]).astype(np.uint8)
        arrays[f"y_{name}"] = y
    np.savez(out / "digits.npz", **arrays)  # which the part then reads
    budget = replace(part.budget, epochs=1, seeds=(0, 1), lrs=(2e-3,))
    found = Methods(out / "digits", part.make(out), budget, latency="none").run(methods)
    return {(r.method, r.seed): (r.value, r.validation, r.lr, r.epoch, r.parameters) for r in found.results}


def test_a_second_run_gives_the_same_figures(tmp_path: Path) -> None:
    names = ("probe/linear", "u_tuning/single_block")
    first, second = figures(tmp_path / "a", names), figures(tmp_path / "b", names[::-1])
    assert first == second and len(first) == 4
