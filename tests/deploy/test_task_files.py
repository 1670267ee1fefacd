"""One file, many tasks: each equals its own PyTorch model, per call and per row, and nothing wrong is taken in silence."""

from __future__ import annotations

import errno
import gc
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from support.models import shake
from support.onnx_toys import IDS, IMAGES, MASK, Pixels, Texts
from torch import nn

import utcompile as utc
from utcompile.deploy import verify_tasks
from utcompile.deploy.task_files import write_adapter

CLASSES = {"cats": 3, "dogs": 5, "birds": 2}
Made = tuple[Path, utc.TunedModule, dict[str, utc.TunedModule], tuple[torch.Tensor, ...]]


def made(folder: Path, build: Callable[[int], nn.Module], rules: str, example: tuple[torch.Tensor, ...]) -> Made:
    """Runs of three tasks, two of which are in a file."""
    runs = {}
    for seed, (name, classes) in enumerate(CLASSES.items()):
        tuned = utc.compile(build(classes).eval(), rules, example)
        torch.manual_seed(seed)
        shake(tuned)
        labels = [f"{name} {i}" for i in range(classes)]
        utc.save_tuners(tuned, folder / name, {"classes": labels})
        runs[name] = tuned.eval()
    return folder / "pets.onnx", utc.compile(build(3).eval(), rules, example).eval(), runs, example


def exported(made: Made, routing: str) -> utc.ExportResult:
    path, tuned, _, example = made
    tasks = {name: path.parent / name for name in ("cats", "dogs")}
    return utc.export_onnx(tuned, path, example, tasks=tasks, routing=routing, batch_sizes=(1, 4))


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Made:
    found = made(tmp_path_factory.mktemp("pets"), Texts, "bitfit/biases", (IDS, MASK))
    exported(found, "call")
    return found


def check_all(made: Made, model: utc.OnnxModel, names: tuple[str, ...]) -> None:
    _, tuned, runs, example = made
    with torch.no_grad():
        np.testing.assert_allclose(model(*example), tuned(*example).numpy(), atol=1e-5)
        for name in names:
            np.testing.assert_allclose(model(*example, task=name), runs[name](*example).numpy(), atol=1e-5)
        batch = tuple(torch.cat([t] * 3)[:5] for t in example)
        rows = [names[(2 * i + 1) % len(names)] for i in range(5)]
        found = model(*batch, task=rows)
        assert isinstance(found, np.ndarray)
        for i, name in enumerate(rows):
            wanted = runs[name](*(t[i : i + 1] for t in batch)).numpy()[0]
            np.testing.assert_allclose(found[i, : len(wanted)], wanted, atol=1e-5)
            assert np.all(found[i, len(wanted) :] == -np.inf)


def test_each_task_is_its_own_model(pets: Made) -> None:
    model = utc.OnnxModel(pets[0])
    assert model.tasks[:2] == ("cats", "dogs") and model.labels_of("dogs")[4] == "dogs 4"
    check_all(pets, model, ("cats", "dogs"))


def test_a_task_is_added_without_the_model(pets: Made, tmp_path: Path) -> None:
    shutil.copytree(pets[0].parent, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "pets.onnx"
    before = path.read_bytes()
    assert utc.add_task(path, pets[0].parent / "birds") == "birds" and path.read_bytes() == before
    check_all(pets, utc.OnnxModel(path), ("cats", "dogs", "birds"))
    with pytest.raises(utc.UtcError, match="there is a task 'birds' already"):
        utc.add_task(path, pets[0].parent / "birds")


def test_a_full_disk_leaves_the_files_as_they_were(pets: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in pets[0].parent.glob("pets.*"):
        shutil.copy(file, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(path: Path, *rest: object) -> None:
        path.write_bytes(b"a part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("utcompile.deploy.adding.write_adapter", full)
    with pytest.raises(utc.UtcError, match="the task cannot be written"):
        utc.add_task(tmp_path / "pets.onnx", pets[0].parent / "birds")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_the_runs_prove_the_file(pets: Made) -> None:
    path, tuned, _, example = pets
    folders = [path.parent / name for name in ("dogs", "cats")]
    assert verify_tasks(path, tuned, example, folders, (2,)).passed
    with pytest.raises(utc.UtcError, match="the run is no task of the file"):
        verify_tasks(path, tuned, example, [path.parent / "birds"])
    with pytest.raises(utc.UtcError, match="no run is given for the task 'dogs'"):
        verify_tasks(path, tuned, example, folders[1:])


PLAIN = """
import sys
import numpy as np
import onnxruntime as ort
path, adapter, inputs, out = sys.argv[1:]
session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
feeds = dict(np.load(inputs))
lora = ort.LoraAdapter()
lora.Load(adapter)
options = ort.RunOptions()
options.add_active_adapter(lora)
(adapted,) = session.run(None, feeds, options)
values = {name: value.numpy() for name, value in ort.AdapterFormat.read_adapter(adapter).get_parameters().items()}
(fed,) = session.run(None, {**feeds, **values})
np.savez(out, adapted=adapted, fed=fed)
"""


def test_onnxruntime_alone_takes_the_files(pets: Made, tmp_path: Path) -> None:
    path, _, runs, (ids, mask) = pets
    np.savez(tmp_path / "in.npz", ids=ids.numpy(), mask=mask.numpy())
    paths = [path, path.with_name("pets.dogs.onnx_adapter"), tmp_path / "in.npz", tmp_path / "out.npz"]
    subprocess.run([sys.executable, "-c", PLAIN, *map(str, paths)], check=True)
    with np.load(tmp_path / "out.npz") as found, torch.no_grad():
        wanted = runs["dogs"](ids, mask).numpy()
        np.testing.assert_allclose(found["adapted"], wanted, atol=1e-5)
        np.testing.assert_allclose(found["fed"], wanted, atol=1e-5)


def spoiled(path: Path, change: Callable[[dict[str, np.ndarray]], Any], base: str | None = None) -> None:
    """Another adapter in the place of a task's own."""
    file = path.with_name("pets.dogs.onnx_adapter")
    values = {n: v.numpy() for n, v in ort.AdapterFormat.read_adapter(str(file)).get_parameters().items()}
    change(values)
    known = json.loads(path.with_suffix(".json").read_text())
    file.unlink()
    write_adapter(file, values, base or known["base"])


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (lambda p: cut_short(p.with_name("pets.dogs.onnx_adapter")), "the adapter file is damaged"),
    "missing": (lambda p: p.with_name("pets.dogs.onnx_adapter").unlink(), "there is no such adapter file"),
    "partial": (lambda p: spoiled(p, lambda v: v.pop(min(v))), "the adapter lacks"),
    "more": (lambda p: spoiled(p, lambda v: v.update(extra=np.ones(1, np.float32))), "has, and the file has not"),
    "shape": (lambda p: spoiled(p, lambda v: v.update({min(v): np.ones((1, 2), np.float32)})), "of shape"),
    "dtype": (lambda p: spoiled(p, lambda v: v.update({k: x.astype(np.float64) for k, x in v.items()})), "float64"),
    "other values": (lambda p: spoiled(p, lambda v: v[min(v)].__iadd__(1)), "is not the one of task 'dogs'"),
    "other base": (lambda p: spoiled(p, lambda v: None, "f" * 64), "belongs to another base"),
    "swapped": (
        lambda p: shutil.copy(p.with_name("pets.cats.onnx_adapter"), p.with_name("pets.dogs.onnx_adapter")),
        "is not the one of task 'dogs'",
    ),
    "no list": (lambda p: p.with_suffix(".json").unlink(), "has no list of tasks"),
    "no JSON": (lambda p: p.with_suffix(".json").write_text("{"), "is no JSON"),
    "hostile list": (lambda p: p.with_suffix(".json").write_text('{"tasks": [{"file": "../x"}]}'), "damaged"),
}


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize("how", WRONG)
def test_wrong_files_are_refused(pets: Made, how: str, tmp_path: Path) -> None:
    for file in pets[0].parent.glob("pets.*"):
        shutil.copy(file, tmp_path)
    path = tmp_path / "pets.onnx"
    change, why = WRONG[how]
    change(path)
    with pytest.raises(utc.UtcError, match=why):
        utc.OnnxModel(path)(*pets[3], task="dogs")


def test_wrong_calls_are_refused(pets: Made) -> None:
    model = utc.OnnxModel(pets[0])
    with pytest.raises(utc.UtcError, match=r"there is no task 'cat'\n  fix: did you mean 'cats'"):
        model(*pets[3], task="cat")
    with pytest.raises(utc.UtcError, match="3 tasks for a batch of 2"):
        model(*pets[3], task=["cats", "dogs", "cats"])


@pytest.mark.parametrize(
    ("tasks", "why"),
    [
        ({}, "there is no task"),
        ({"a/b": "cats"}, "'a/b' is no name of a task"),
        ({"cats": "cats", "Cats": "dogs"}, "there is a task 'Cats' already"),
        ({"cats": "nowhere"}, "task 'cats': there is no checkpoint here"),
    ],
)
def test_wrong_tasks_leave_no_file(pets: Made, tasks: dict[str, str], why: str, tmp_path: Path) -> None:
    path, tuned, _, example = pets
    old = tmp_path / "pets.onnx"
    old.write_bytes(b"an older file")
    with pytest.raises(utc.UtcError, match=why):
        utc.export_onnx(tuned, old, example, tasks={n: path.parent / f for n, f in tasks.items()})
    assert [f.name for f in tmp_path.iterdir()] == ["pets.onnx"] and old.read_bytes() == b"an older file"


def test_runs_of_another_base_or_other_rules_are_refused(pets: Made, tmp_path: Path) -> None:
    path, tuned, _, example = pets
    other = Texts().eval()
    with torch.no_grad():
        other.up.weight.mul_(1.1)
    utc.save_tuners(utc.compile(other, "bitfit/biases", example), tmp_path / "base")
    utc.save_tuners(utc.compile(Texts().eval(), "lora/all_linear", example), tmp_path / "rules")
    for folder, why in (("base", "another base"), ("rules", "other rules or sites")):
        with pytest.raises(utc.UtcError, match=why):
            utc.add_task(path, tmp_path / folder)
        with pytest.raises(utc.UtcError, match=f"task '{folder}'"):
            utc.export_onnx(tuned, tmp_path / "m.onnx", example, tasks={folder: tmp_path / folder})
    assert sorted(f.name for f in tmp_path.iterdir()) == ["base", "rules"]


SMALL = "version: 1\nname: t\nrules:\n  - {name: r, match: {op: NAME}, not_inside: {module: head}, insert: {INSERT}}\ntrain: ['pattern:head']\n"
KINDS = {
    "adapter": ("linear", "parallel: x -> h, tuner: {kind: adapter, dim: 4}"),
    "lora branch": ("linear", "weight: h, tuner: {kind: lora, r: 2}"),
    "ssf": ("linear", "sequential: h, tuner: {kind: ssf}"),
    "ia3": ("linear", "sequential: h, tuner: {kind: ia3}"),
    "norm": ("norm", "weight: h, tuner: {kind: norm_affine}"),
    "bias": ("linear", "weight: h, tuner: {kind: bias}"),
    "conv adapter": ("conv2d", "parallel: x -> h, tuner: {kind: adapter, dim: 4}"),
    "conv lora": ("conv2d", "weight: h, tuner: {kind: lora, r: 2}"),
    "conv ssf": ("conv2d", "sequential: h, tuner: {kind: ssf}"),
}


@pytest.mark.full
@pytest.mark.parametrize("routing", ["call", "row"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tuner(kind: str, routing: str, tmp_path: Path) -> None:
    op, insert = KINDS[kind]
    rules = SMALL.replace("NAME", op).replace("INSERT", insert)
    build, example = (Pixels, (IMAGES,)) if "conv" in kind else (Texts, (IDS, MASK))
    found = made(tmp_path, build, rules, example)
    result = exported(found, routing)
    assert result.parity.passed and result.tasks == ("cats", "dogs")
    check_all(found, utc.OnnxModel(found[0]), ("cats", "dogs"))


@pytest.mark.full
def test_a_file_with_rows_grows(tmp_path: Path) -> None:
    found = made(tmp_path, Texts, "bitfit/biases", (IDS, MASK))
    exported(found, "row")
    utc.add_task(found[0], tmp_path / "birds")
    check_all(found, utc.OnnxModel(found[0]), ("cats", "dogs", "birds"))
    large = utc.compile(Texts(9).eval(), "bitfit/biases", found[3])
    utc.save_tuners(large, tmp_path / "large")
    before = found[0].read_bytes()
    with pytest.raises(utc.UtcError, match="more classes than the file has room for: 5"):
        utc.add_task(found[0], tmp_path / "large")
    assert found[0].read_bytes() == before


@pytest.mark.full
def test_what_has_no_form_per_row_is_refused_by_name(tmp_path: Path) -> None:
    class Depthwise(Pixels):
        def __init__(self, classes: int = 3) -> None:
            super().__init__(classes)
            torch.manual_seed(1)
            self.b = nn.Conv2d(16, 16, 3, padding=1, groups=16)

    found = made(tmp_path, Depthwise, "lora/all_conv", (IMAGES,))
    with pytest.raises(utc.UtcError, match="has no form per row: it is read by Conv") as caught:
        exported(found, "row")
    assert "depthwise" in str(caught.value) and not found[0].exists()
    result = exported(found, "call")
    assert "weights of convolutions are inputs" in str(result)


@pytest.mark.full
@pytest.mark.parametrize("routing", ["call", "row"])
def test_threads_with_tasks_of_their_own_get_their_own_rows(routing: str, tmp_path: Path) -> None:
    found = made(tmp_path, Texts, "bitfit/biases", (IDS, MASK))
    exported(found, routing)
    _, tuned, runs, (ids, mask) = found
    model = utc.OnnxModel(found[0], threads=1)
    choices: list[str | None] = [None, "cats", "dogs"]
    with torch.no_grad():
        wanted = {name: (tuned if name is None else runs[name])(ids, mask).numpy() for name in choices}

    def call(seed: int) -> int:
        chosen = choices[seed * 7 % 3]
        return int(np.abs(model(ids, mask, task=chosen) - wanted[chosen]).max() > 1e-5)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(call, range(5000))) == 0


@pytest.mark.full
def test_batch_norms_whose_bias_is_the_task_become_part_of_their_convolutions(tmp_path: Path) -> None:
    class Normed(Pixels):
        def __init__(self, classes: int = 3) -> None:
            super().__init__(classes)
            torch.manual_seed(1)
            self.b = nn.Sequential(
                nn.Conv2d(16, 16, 1, bias=False),
                nn.BatchNorm2d(16),
                nn.Conv2d(16, 16, 1, bias=False),
                nn.BatchNorm2d(16),
            )
            for norm in (self.b[1], self.b[3]):
                nn.init.uniform_(norm.weight, 0.5, 2)
                nn.init.uniform_(norm.running_var, 0.5, 2)
                nn.init.normal_(norm.running_mean)

    found = made(tmp_path, Normed, "bitfit/biases", (IMAGES,))
    assert exported(found, "call").parity.passed
    nodes = [node.op_type for node in onnx.load(found[0]).graph.node]
    assert "BatchNormalization" not in nodes and nodes.count("Conv") == 3
    fast, plain = utc.OnnxModel(found[0]), utc.OnnxModel(found[0], blocked=False)
    assert fast.is_blocked == (platform.machine() in ("x86_64", "AMD64")) and not plain.is_blocked
    for model in (fast, plain):
        check_all(found, model, ("cats", "dogs"))
    gc.collect()  # the values of a task are not those of the adapter that is gone
    check_all(found, fast, ("cats", "dogs"))
    utc.add_task(found[0], tmp_path / "birds")
    check_all(found, utc.OnnxModel(found[0]), ("cats", "dogs", "birds"))
