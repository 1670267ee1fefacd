"""Files of tasks whose heads differ, of models with several heads, and of models without a trained one."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
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


@pytest.mark.full
@pytest.mark.parametrize("routing", ["call", "row"])
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


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A file with one task of a model without a trained head, and five more runs."""
    folder = tmp_path_factory.mktemp("one")
    _runs(folder, RULES, {f"r{i}": (3, 4) for i in range(6)})
    tuned = utc.compile(Heads(3).eval(), RULES, (X,)).eval()
    utc.export_onnx(tuned, folder / "m.onnx", (X,), tasks={"r0": folder / "r0"}, batch_sizes=(2,))
    return folder, tuned


def test_tasks_that_are_added_at_once_are_all_there(one: tuple[Path, nn.Module]) -> None:
    folder, _ = one
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda i: utc.add_task(folder / "m.onnx", folder / f"r{i}"), range(1, 6)))
    assert set(utc.OnnxModel(folder / "m.onnx").tasks) == {f"r{i}" for i in range(6)}


def test_a_task_keeps_what_its_run_says(one: tuple[Path, nn.Module], tmp_path: Path) -> None:
    folder, tuned = one
    said = {
        "a": {"task": "multilabel", "outputs": {"kind": "labels"}, "preprocessing": {"size": 8}},
        "b": {"task": "regress", "outputs": {"mean": [1.0]}, "preprocessing": {"size": 16}},
    }
    for number, (name, told) in enumerate(said.items()):
        shutil.copytree(folder / f"r{number}", tmp_path / name)
        (tmp_path / name / "task.json").write_text(json.dumps(told))
    path, how = tmp_path / "m.onnx", {"size": 8}
    utc.export_onnx(tuned, path, (X,), tasks={"a": tmp_path / "a"}, batch_sizes=(2,), preprocessing=how)
    utc.add_task(path, tmp_path / "b")
    shutil.rmtree(tmp_path / "a")  # the file needs no run any more
    model = utc.OnnxModel(path)
    assert model.outputs_of("a") == {"task": "multilabel", "kind": "labels"} and model.preprocessing_of("a") == how
    assert model.outputs_of("b") == {"task": "regress", "mean": [1.0]} and model.preprocessing_of("b") == {"size": 16}
    assert model.outputs_of(None) == {} and model.preprocessing_of(None) == how
    of_generator = model(X, task=(name for name in ("a", "b", "a", "b")))
    np.testing.assert_array_equal(of_generator["kind"], model(X, task=["a", "b", "a", "b"])["kind"])  # type: ignore[call-overload]


def test_what_a_call_cannot_be(one: tuple[Path, nn.Module]) -> None:
    model = utc.OnnxModel(one[0] / "m.onnx")
    with pytest.raises(utc.UtcError, match="task is a int"):
        model(X, task=5)  # type: ignore[arg-type]
    with pytest.raises(utc.UtcError, match="'x' is float64, and the file takes float32"):
        model(X.double())
    np.testing.assert_array_equal(model(X.tolist())["kind"], model(X)["kind"])  # type: ignore[call-overload]


@pytest.mark.parametrize("text", ['{"mine": 1}', "no JSON"])
def test_a_file_that_is_no_list_of_tasks_is_kept(one: tuple[Path, nn.Module], text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(utc.UtcError, match=r"config\.json is there already, and is no list of tasks"):
        utc.export_onnx(one[1], tmp_path / "config.onnx", (X,), tasks={"r0": one[0] / "r0"})
    assert (tmp_path / "config.json").read_text() == text and len(list(tmp_path.iterdir())) == 1


def test_labels_and_metadata_that_say_something_false(tmp_path: Path) -> None:
    linear, path = nn.Linear(8, 3), tmp_path / "m.onnx"
    with pytest.raises(utc.UtcError, match="there are 2 labels, and no output has 2 classes"):
        utc.export_onnx(linear, path, X, labels=["a", "b"])
    with pytest.raises(utc.UtcError, match=r"metadata has the key 'utcompile\.axes'"):
        utc.export_onnx(linear, path, X, metadata={"utcompile.axes": "all"})
    assert not path.exists()


@pytest.mark.full
def test_a_task_that_does_not_fit_in_float16_is_refused(one: tuple[Path, nn.Module], tmp_path: Path) -> None:
    folder, tuned = one
    tasks, path = {"r0": folder / "r0"}, tmp_path / "m.onnx"
    utc.export_onnx(tuned, path, (X,), tasks=tasks, routing="row", dtype="float16-weights", batch_sizes=(2,))
    large = utc.compile(Heads(3).eval(), RULES, (X,))
    with torch.no_grad():
        for parameter in large.parameters():
            if parameter.requires_grad:
                parameter.fill_(1e6)
    utc.save_tuners(large, tmp_path / "large")
    before = path.read_bytes()
    with pytest.raises(utc.UtcError, match="does not fit in float16"):
        utc.add_task(path, tmp_path / "large")
    assert path.read_bytes() == before
