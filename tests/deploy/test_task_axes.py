"""Files of tasks whose heads differ, of models with several heads, and of models without a trained one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.models import shake
from torch import Tensor, nn

import utcompile as utc

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
RULES = """version: 1
name: t
rules:
  - {name: r, match: {op: linear}, not_inside: {module: "h_*"}, insert: {parallel: x -> h, tuner: {kind: adapter, dim: 4}}}
"""
HEADS = RULES + "train: ['module:h_*']\n"


class Heads(nn.Module):
    """Two heads, of which each has its own classes; with `added`, one more whose output is added to the first's."""

    def __init__(self, kinds: int, boxes: int = 4, *, added: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.f, self.g = nn.Linear(8, 16), nn.Linear(16, 16)
        self.h_kind, self.h_box = nn.Linear(16, kinds), nn.Linear(16, boxes)
        self.h_added = nn.Linear(16, kinds) if added else None

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.g(self.f(x).relu()).relu()
        kind = self.h_kind(h)
        return {"kind": kind if self.h_added is None else (kind + self.h_added(h)) / 2, "box": self.h_box(h)}


def _runs(folder: Path, rules: str, sizes: dict[str, tuple[int, int]], *, added: bool = False) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for seed, (name, (kinds, boxes)) in enumerate(sizes.items()):
        tuned = utc.compile(Heads(kinds, boxes, added=added).eval(), rules, (X,))
        torch.manual_seed(seed)
        shake(tuned)
        utc.save_tuners(tuned, folder / name)
        found[name] = tuned.eval()
    return found


@pytest.mark.parametrize("routing", ["call", pytest.param("row", marks=pytest.mark.full)])
@pytest.mark.parametrize("added", [False, pytest.param(True, marks=pytest.mark.full)])
def test_every_head_has_its_own_number_of_classes(routing: str, added: bool, tmp_path: Path) -> None:
    runs = _runs(tmp_path, HEADS, {"a": (3, 4), "b": (5, 6)}, added=added)
    tuned = utc.compile(Heads(3, added=added).eval(), HEADS, (X,)).eval()
    tasks = {name: tmp_path / name for name in runs}
    utc.export_onnx(tuned, tmp_path / "m.onnx", (X,), tasks=tasks, routing=routing, batch_sizes=(2,))
    model = utc.OnnxModel(tmp_path / "m.onnx")
    mixed = model(X, task=["a", "b", "b", "a"])
    assert isinstance(mixed, dict) and mixed["kind"].shape == (4, 5) and mixed["box"].shape == (4, 6)
    with torch.no_grad():
        for name, its in runs.items():
            found = model(X, task=name)
            assert isinstance(found, dict)
            for key, wanted in its(X).items():
                np.testing.assert_allclose(found[key], wanted.numpy(), atol=1e-5)
                rows, classes = [0, 3] if name == "a" else [1, 2], wanted.shape[1]
                np.testing.assert_allclose(mixed[key][rows, :classes], wanted[rows].numpy(), atol=1e-5)
                assert np.all(mixed[key][rows, classes:] == -np.inf)


@pytest.mark.parametrize("routing", ["call", pytest.param("row", marks=pytest.mark.full)])
def test_a_model_without_a_trained_head_has_tasks_too(routing: str, tmp_path: Path) -> None:
    runs = _runs(tmp_path, RULES, {"a": (3, 4), "b": (3, 4)})
    tuned = utc.compile(Heads(3).eval(), RULES, (X,)).eval()
    tasks = {"a": tmp_path / "a"}
    utc.export_onnx(tuned, tmp_path / "m.onnx", (X,), tasks=tasks, routing=routing, batch_sizes=(2,))
    utc.add_task(tmp_path / "m.onnx", tmp_path / "b")
    with torch.no_grad():
        found, wanted = utc.OnnxModel(tmp_path / "m.onnx")(X, task="b"), runs["b"](X)
    assert isinstance(found, dict)
    np.testing.assert_allclose(found["kind"], wanted["kind"].numpy(), atol=1e-5)
