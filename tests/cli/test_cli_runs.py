"""No verb destroys a run; folders that `save_tuners` wrote are runs; manifests name no size that is out of bounds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnxruntime as ort
import pytest
import torch
from support.cli_toys import names, passed, refused

import utcompile as utc
from utcompile.cli.sources import source_of

FACTORY = """
import torch
from torch import nn

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mid, self.fc = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 3)
    def forward(self, ids, mask):
        return self.fc(torch.relu(self.mid((self.embed(ids) * mask[..., None]).sum(1))))

def images():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()

def tokens():
    torch.manual_seed(0)
    return Tokens().eval()
"""
INPUTS = {
    "images": (torch.randn(2, 3, 12, 12),),
    "tokens": {"ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "mask": torch.ones(2, 3)},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `net.py` and two runs that `save_tuners` wrote."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "net.py").write_text(FACTORY)
    for name, inputs in INPUTS.items():
        made = source_of(f"{folder / 'net.py'}:{name}").build(None, False, ())
        tuned = utc.compile(made, "lora/all_linear", inputs, vars={"r": 2})
        utc.save_tuners(tuned, folder / name)
    return folder


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home, tmp_path / "copy"))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", INPUTS)
def test_fold_export_and_verify_a_folder_that_save_tuners_wrote(home: Path, tmp_path: Path, kind: str) -> None:
    model = ("-m", f"{home / 'net.py'}:{kind}")
    passed("fold", home / kind, *model, "-o", tmp_path / "folded")
    assert names(tmp_path / "folded") == ["model.pt2", "model.safetensors", "report.json"]
    assert json.loads((tmp_path / "folded" / "report.json").read_text())["run"]["spec"] == model[1]
    passed("export", home / kind, *model, "-o", tmp_path / "m.onnx")
    shapes = [entry.shape for entry in ort.InferenceSession(tmp_path / "m.onnx").get_inputs()]
    assert shapes[0][1:] == ([3, 12, 12] if kind == "images" else shapes[0][1:]) and shapes[0][0] == "batch"
    assert "equal" in passed("verify", tmp_path / "m.onnx", home / kind, *model).stdout


@pytest.mark.parametrize(
    ("verb", "out", "word"),
    [
        (("fold", "--overwrite"), "images", "is the run"),
        (("fold", "--overwrite"), ".", "contains the run"),
        (("fold", "--overwrite"), "images/folded", "lies in the run"),
        (("fold", "--overwrite"), "link", "is the run"),
        (("fold", "--overwrite"), "tokens", "is a run"),
        (("fold", "--overwrite"), "tokens/deeper/still", "lies in a run"),
        (("fold", "--overwrite"), "others", "would replace a run"),
        (("export",), "images/tuners.safetensors", "lies in the run"),
        (("export",), "images/model.onnx", "lies in the run"),
        (("export",), "link/model.onnx", "lies in the run"),
        (("export",), "tokens/manifest.json", "lies in a run"),
        (("export", "--peft"), "images", "is the run"),
        (("export", "--peft"), "images/adapter", "lies in the run"),
    ],
)
def test_no_result_takes_the_place_of_a_run(copy: Path, verb: tuple[str, ...], out: str, word: str) -> None:
    (copy / "link").symlink_to(copy / "images")
    shutil.copytree(copy / "tokens", copy / "others" / "a" / "run")
    before = everything(copy)
    refused(verb[0], copy / "images", *verb[1:], "-o", copy / out, says=(word, "write it to another folder"))
    assert everything(copy) == before


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"input_size": [3, 10**6, 10**6]}, "a size that is too large"),
        ({"input_size": [10**9, 1, 1]}, "a size that is too large"),
        ({"num_classes": 10**9}, "a size that is too large"),
        ({"num_classes": -1}, "a size that is too large"),
        ({"seed": 2**70}, "does not say how the model is built"),
        ({"seed": "0"}, "does not say how the model is built"),
        ({"input_size": [3, True, 4]}, "does not say how the model is built"),
    ],
)
def test_sizes_of_a_manifest_are_bounded(copy: Path, entry: dict[str, object], says: str) -> None:
    path = copy / "images" / "manifest.json"
    size = {
        "spec": "timm:resnet18",
        "num_classes": 2,
        "weights": None,
        "pretrained": False,
        "seed": 0,
        "input_size": [3, 8, 8],
    }
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": {**size, **entry}}))
    refused("fold", copy / "images", "-o", copy / "folded", says=(says,))


@pytest.mark.parametrize("shape", [[2, 3, 10**6, 10**6], [2**40], [-1]])
def test_inputs_of_a_manifest_are_bounded(copy: Path, shape: list[int]) -> None:
    path = copy / "tokens" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["inputs"]["ids"]["shape"] = shape
    path.write_text(json.dumps(manifest))
    refused("fold", copy / "tokens", "-m", f"{copy / 'net.py'}:tokens", "-o", copy / "folded", says=("manifest.json",))


def test_the_base_of_a_run_may_have_another_dtype_and_that_is_said(copy: Path) -> None:
    (copy / "half.py").write_text(FACTORY.replace(".eval()", ".eval().double()"))
    manifest = json.loads((copy / "images" / "manifest.json").read_text())
    manifest["inputs"] = {name: {**entry, "dtype": "float64"} for name, entry in manifest["inputs"].items()}
    (copy / "images" / "manifest.json").write_text(json.dumps(manifest))
    result = passed("fold", copy / "images", "-m", f"{copy / 'half.py'}:images", "-o", copy / "folded")
    assert "were float32 in training, and are float64 here" in result.stderr
