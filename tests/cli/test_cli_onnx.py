"""`export --task`, `predict`, `bench` and `verify` of files with tasks: from runs to numbers."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.cli_toys import names, parsed, passed, refused, utc

import utcompile
from utcompile import compile, export_onnx, save_tuners
from utcompile.cli.models import ModelChoice

LABELS = ["night", "noon"]


def _run(folder: Path, seed: int) -> Path:
    """A run of a tiny vision transformer whose biases and head are trained."""
    choice = ModelChoice("timm:test_vit", num_classes=2, input_size=(3, 32, 32))
    tuned = compile(choice.build(), "bitfit/biases", (choice.example(),))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in tuned.parameters():
            if p.requires_grad:
                p += 0.05 * torch.randn(p.shape, generator=generator)
    return save_tuners(tuned, folder, {"model": choice.as_dict(), "classes": LABELS})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    for name, value in (("dark", 0), ("light", 255)):
        Image.new("RGB", (40, 36), (value, value, value)).save(folder / f"{name}.png")
    _run(folder / "cats", 1)
    return folder


def test_a_run_predicts_with_its_labels(home: Path) -> None:
    found = parsed("predict", home / "cats", home / "dark.png", home / "light.png", "--top", "1")
    assert [entry["input"] for entry in found] == [str(home / "dark.png"), str(home / "light.png")]
    assert all(entry["top"][0]["label"] in LABELS and 0.5 <= entry["top"][0]["probability"] <= 1 for entry in found)


def test_wrong_commands(home: Path, tmp_path: Path) -> None:
    refused("predict", tmp_path / "none.onnx", home / "dark.png", says=("there is no such ONNX file",))
    refused("predict", home / "cats", home / "dark.png", "--providers", "gpu", says=("there is no provider 'gpu'",))
    assert utc("export", "-o", tmp_path / "m.onnx").exit_code == 2
    assert utc("export", "--task", "a=b", "--task", "a=c", "-o", tmp_path / "m.onnx").exit_code == 2


@pytest.mark.full
def test_what_cannot_be_predicted(home: Path, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("no image")
    refused("predict", home / "cats", tmp_path / "no.png", says=("it is no image",))
    np.savez(tmp_path / "y.npz", a=np.zeros((1, 3, 32, 32), np.float32), b=np.zeros(1))
    refused("predict", home / "cats", tmp_path / "y.npz", says=("the arrays are a, b, and the model takes x",))
    refused("predict", home / "cats", home / "dark.png", "--task", "cats", says=("a run is one task",))


@pytest.mark.full
@pytest.mark.parametrize("routing", ["call", "row"])
def test_tasks_from_runs_to_predictions(home: Path, routing: str, tmp_path: Path) -> None:
    if not (home / "dogs").exists():
        _run(home / "dogs", 2)
    tasks = [f"--task={name}={home / name}" for name in ("cats", "dogs")]
    report = parsed("export", *tasks, "--routing", routing, "-o", tmp_path / "pets.onnx")
    assert report["tasks"] == ["cats", "dogs"] and report["max_error"] < 1e-4
    adapters = ["pets.cats.onnx_adapter", "pets.dogs.onnx_adapter"] if routing == "call" else []
    assert names(tmp_path) == sorted([*adapters, "pets.builder.onnx", "pets.json", "pets.onnx"])
    assert "equal" in passed("verify", tmp_path / "pets.onnx", home / "dogs", home / "cats").stdout
    shares = {}
    for name in ("cats", "dogs"):
        ours = parsed("predict", tmp_path / "pets.onnx", "--task", name, home / "dark.png")
        theirs = parsed("predict", home / name, home / "dark.png")
        for a, b in zip(ours[0]["top"], theirs[0]["top"], strict=True):
            assert a["label"] == b["label"] and a["probability"] == pytest.approx(b["probability"], abs=1e-5)
        shares[name] = ours[0]["top"]
    assert shares["cats"] != shares["dogs"]
    lines = passed("predict", tmp_path / "pets.onnx", "--task", "cats", home / "dark.png", "--csv").stdout.splitlines()
    assert lines[0] == "input,label,probability" and len(lines) == 3
    refused("predict", tmp_path / "pets.onnx", "--task", "cat", home / "dark.png", says=("did you mean 'cats'",))


@pytest.mark.full
def test_bench_measures_a_run_and_files(home: Path, tmp_path: Path) -> None:
    small = ("--batch-sizes", "1,2", "--threads", "1", "--rounds", "2")
    rows = parsed("bench", home / "cats", *small, "--csv", tmp_path / "t.csv", "--plot", tmp_path / "t.svg")
    assert all((row["memory"] or 0) > 0 for row in rows if "ONNX Runtime" in row["what"])
    assert len(ElementTree.parse(tmp_path / "t.svg").findall(".//{*}line")) == len(rows)
    kinds = {f"{kind}, {where}" for kind in ("base", "tuned", "folded") for where in ("PyTorch", "ONNX Runtime")}
    assert {row["what"] for row in rows} == {*kinds, "live, ONNX Runtime"}
    assert all(0 < row["lower"] <= row["median"] <= row["upper"] for row in rows)
    with (tmp_path / "t.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows) == 14
    for name in ("a", "b"):
        export_onnx(torch.nn.Linear(4, 2), tmp_path / f"{name}.onnx", torch.ones(1, 4))
    assert "b.onnx" in passed("bench", tmp_path / "a.onnx", tmp_path / "b.onnx", *small).stdout
    refused("bench", tmp_path / "none.onnx", says=("there is no such ONNX file",))
    refused("bench", tmp_path / "a.onnx", "--plot", tmp_path / "no" / "t.svg", says=("does not exist",))


@pytest.mark.full
def test_an_exported_run_carries_labels_and_preprocessing(home: Path, tmp_path: Path) -> None:
    passed("export", home / "cats", "-o", tmp_path / "m.onnx", "--dtype", "float16-weights")
    facts = utcompile.OnnxModel(tmp_path / "m.onnx").facts
    assert facts["labels"] == LABELS and facts["dtype"] == "float16-weights"
    assert facts["preprocessing"]["input_size"] == [3, 32, 32]  # type: ignore[index]
    assert facts["base"] == json.loads((home / "cats" / "manifest.json").read_text())["base"]["fingerprint"]
    assert set(facts["rules"]) == {"name", "vars", "text"}  # type: ignore[call-overload]
    assert "MB" in passed("bench", tmp_path / "m.onnx", "--batch-sizes", "1", "--rounds", "1").stdout


def test_arrays_that_are_no_samples_or_give_no_classes(tmp_path: Path) -> None:
    for name, classes in (("m", 3), ("one", 1)):
        export_onnx(torch.nn.Linear(4, classes), tmp_path / f"{name}.onnx", torch.ones(2, 4), batch_sizes=(2,))
    np.save(tmp_path / "x.npy", np.zeros((2, 4), ">f4"))
    assert len(parsed("predict", tmp_path / "m.onnx", tmp_path / "x.npy")) == 2
    refused(
        "predict", tmp_path / "one.onnx", tmp_path / "x.npy", says=("is one number per sample, and not one per class",)
    )
    np.savez(tmp_path / "text.npz", x=np.array(["a", "b"]))
    np.savez(tmp_path / "scalar.npz", x=np.float32(1))
    np.save(tmp_path / "nan.npy", np.full((2, 4), np.nan, np.float32))
    np.save(tmp_path / "double.npy", np.zeros((2, 4)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "text.npz").read_bytes()[:60])
    for file, why in {
        "text.npz": "the array 'x' is of <U1",
        "scalar.npz": "the array 'x' is one number",
        "cut.npz": "the file of arrays cannot be read",
        "nan.npy": "contains nan for",
        "double.npy": "is float64, and the file takes float32",
    }.items():
        refused("predict", tmp_path / "m.onnx", tmp_path / file, says=(why,))
