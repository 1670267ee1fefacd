"""`train`, `fold`, `export`, `verify` on a tiny model: the whole way, and back again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file
from support.cli_toys import MODEL, RULES, TRAINING, names, parsed, passed, utc, write_data

from utcompile import compile, peft_rules, save_tuners
from utcompile.cli.models import ModelChoice
from utcompile.cli.runs import open_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    data = write_data(folder / "data.npz")
    result = passed("train", *MODEL, *RULES, "-d", data, "-o", folder / "run", *TRAINING)
    (folder / "train.out").write_text(result.stdout)
    (folder / "train.err").write_text(result.stderr)
    return folder / "run"


def test_train_says_what_it_does(run):
    progress = (run.parent / "train.err").read_text()
    assert "36 training and 4 validation samples of 2 classes, 3x32x32" in progress
    assert "parameters to train" in progress
    assert "epoch 1/2: loss" in progress
    assert "epoch 2/2: loss" in progress
    assert "best validation accuracy" in (run.parent / "train.out").read_text()


def test_train_keeps_all_that_a_later_fold_needs(run):
    kept = ["history.jsonl", "last", "manifest.json", "metrics.csv", "task.json", "tuners.safetensors"]
    assert names(run) == kept
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["model"] == {
        "spec": "timm:test_efficientnet",
        "num_classes": 2,
        "weights": None,
        "pretrained": False,
        "seed": 0,
        "input_size": [3, 32, 32],
    }
    assert manifest["data"] == str(run.parent / "data.npz")
    assert manifest["training"]["epochs"] == 2
    assert manifest["rules"]["vars"]["r"] == 2


def test_fold_writes_files_that_need_no_utcompile(run, tmp_path):
    report = parsed("fold", run, "-o", tmp_path / "folded", "--strict")
    assert names(tmp_path) == ["folded"]
    assert names(tmp_path / "folded") == ["model.pt2", "model.safetensors", "report.json"]
    assert {site["status"] for site in report["sites"]} == {"absorbed"}
    assert json.loads((tmp_path / "folded" / "report.json").read_text())["max_error"] == report["max_error"]
    code = f"""
import sys
sys.modules["utcompile"] = None
import torch
program = torch.export.load({str(tmp_path / "folded" / "model.pt2")!r}).module()
torch.manual_seed(3)
torch.save(program(torch.randn(5, 3, 32, 32)), {str(tmp_path / "output.pt")!r})
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)
    torch.manual_seed(3)
    images = torch.randn(5, 3, 32, 32)
    tuned = open_run(run).tuned
    with torch.no_grad():
        expected = tuned(images)
        assert torch.allclose(torch.load(tmp_path / "output.pt"), expected, rtol=1e-4, atol=1e-5)
        # the original architecture, with the folded weights
        plain = ModelChoice("timm:test_efficientnet", 2, input_size=(3, 32, 32), seed=7).build()
        plain.load_state_dict(load_file(tmp_path / "folded" / "model.safetensors"))
        assert torch.allclose(plain(images), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def exported(run):
    """The run's ONNX file, and what `export --json` said."""
    folder = run.parent / "exported"
    folder.mkdir()
    return folder / "model.onnx", parsed("export", run, "-o", folder / "model.onnx", "--batch-sizes", "1,4")


def test_export_folds_and_proves(exported):
    path, report = exported
    assert {site["status"] for site in report["fold"]["sites"]} == {"absorbed"}
    assert report["batch_sizes"] == [1, 2, 4]  # 2 is the example's
    assert report["max_error"] < 1e-4
    assert names(path.parent) == ["model.onnx"]
    session = ort.InferenceSession(path)
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]


def test_export_unfolded(run, tmp_path):
    text = passed("export", run, "-o", tmp_path / "model.onnx", "--no-fold", "--opset", "20").stdout
    assert "opset 20" in text
    assert "equal in ONNX Runtime at batch sizes 1, 2, 3, 8: largest difference" in text


def test_export_for_peft(run, tmp_path):
    choice = ModelChoice("timm:test_vit", num_classes=2, input_size=(3, 32, 32))
    torch.manual_seed(choice.seed)
    tuned = compile(choice.build(), "lora/all_linear", (choice.example(),), vars={"r": 2})
    save_tuners(tuned, tmp_path / "run", extra={"model": choice.as_dict()})
    assert "from_pretrained" in passed("export", tmp_path / "run", "--peft", "-o", tmp_path / "adapter").stdout
    assert names(tmp_path / "adapter") == ["adapter_config.json", "adapter_model.safetensors"]
    assert len(peft_rules(tmp_path / "adapter").rules) == 1
    again = utc("export", tmp_path / "run", "--peft", "-o", tmp_path / "adapter")
    assert again.exit_code == 1 and "the folder is not empty" in again.stderr
    assert parsed("export", tmp_path / "run", "--peft", "-o", tmp_path / "b") == {"path": str(tmp_path / "b")}
    refused = utc("export", run, "--peft", "-o", tmp_path / "none")  # it has depthwise convolutions
    assert refused.exit_code == 1 and "PEFT cannot hold these sites" in refused.stderr
    assert not (tmp_path / "none").exists()


def test_verify(run, exported):
    path, _ = exported
    assert "equal in ONNX Runtime and PyTorch" in passed("verify", path, run).stdout
    report = parsed("verify", path, run, "--batch-sizes", "2")
    assert report["passed"]
    assert report["max_error"] < 1e-4
    result = utc("verify", path, run, "--tolerance", "1e-12")
    assert result.exit_code == 1
    assert "ONNX Runtime and PyTorch disagree" in result.stderr


def test_verify_finds_a_file_of_another_run(run, exported, tmp_path):
    path, _ = exported
    other = tmp_path / "other"
    passed("train", *MODEL, *RULES, "-d", run.parent / "data.npz", "-o", other, "--epochs", "1", "--seed", "1")
    result = utc("verify", path, other, "--json")
    assert result.exit_code == 1
    assert "ONNX Runtime and PyTorch disagree" in result.stderr
    assert not json.loads(result.stdout)["passed"]


def test_the_same_seed_gives_the_same_run(run, tmp_path):
    found = parsed("train", *MODEL, *RULES, "-d", run.parent / "data.npz", "-o", tmp_path / "run", *TRAINING)
    assert found["run"] == str(tmp_path / "run")
    assert len(found["history"]) == 2
    mine, theirs = load_file(tmp_path / "run" / "tuners.safetensors"), load_file(run / "tuners.safetensors")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def test_resume_goes_on_where_a_run_was_stopped(run, tmp_path, monkeypatch):
    from utcompile.train.run_folder import RunFolder

    keep, epochs = RunFolder.keep_last, []

    def stop_after_one(self, state, history):
        keep(self, state, history)
        epochs.append(len(history))
        if len(epochs) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "keep_last", stop_after_one)
    stopped = tmp_path / "run"
    arguments = ("train", *MODEL, *RULES, "-d", run.parent / "data.npz", "-o", stopped, *TRAINING)
    assert utc(*arguments).exit_code == 130
    assert (stopped / "last" / "manifest.json").is_file()
    found = parsed("train", "--resume", "-o", stopped)
    assert epochs == [1, 2]
    assert [e["epoch"] for e in found["history"]] == [1, 2]
    mine, theirs = load_file(stopped / "tuners.safetensors"), load_file(run / "tuners.safetensors")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def test_a_run_folds_from_another_folder_and_with_given_weights(run, tmp_path, monkeypatch):
    weights = tmp_path / "base.pth"
    torch.save(ModelChoice("timm:test_efficientnet", seed=5).build().state_dict(), weights)
    monkeypatch.chdir(tmp_path)
    result = passed(
        "train", *MODEL, *RULES, "--weights", "base.pth", "-d", run.parent / "data.npz", "-o", "run", *TRAINING
    )
    assert "the new head keeps random values: classifier.weight, classifier.bias" in result.stderr
    monkeypatch.chdir(run.parent)
    text = passed("fold", tmp_path / "run", "-o", tmp_path / "deep" / "folded").stdout
    assert "absorbed" in text and "model.pt2" in text
    assert (tmp_path / "deep" / "folded" / "model.pt2").is_file()
    moved = shutil.move(weights, tmp_path / "moved.pth")
    assert utc("fold", tmp_path / "run", "-o", tmp_path / "deep" / "folded", "--overwrite").exit_code == 1
    passed("fold", tmp_path / "run", "-o", tmp_path / "deep" / "folded", "--overwrite", "--weights", moved)


def test_a_factory_in_a_run_needs_trust(run, tmp_path):
    net = tmp_path / "net.py"
    net.write_text(
        "from torch import nn\n\ndef make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))\n"
    )
    folder = tmp_path / "run"
    model = ("-m", f"{net}:make", "--input-size", "8")
    passed("train", *model, *RULES, "-d", run.parent / "data.npz", "-o", folder, "--epochs", "1")
    result = utc("fold", folder, "-o", tmp_path / "folded")
    assert result.exit_code == 1
    assert "building this run's model would run code" in result.stderr
    assert f"-m {net}:make, or say --trust" in result.stderr
    assert not (tmp_path / "folded").exists()
    passed("fold", folder, "-o", tmp_path / "folded", "-m", f"{net}:make")
    passed("fold", folder, "-o", tmp_path / "folded", "--trust", "--overwrite")
    assert names(tmp_path) == ["folded", "net.py", "run"]
