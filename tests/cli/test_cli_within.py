"""`--within`: a run of a model of which parts are tuned goes through all verbs, and its class stays its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.cli_toys import parsed, passed, refused, write_data
from torch import nn

import utcompile as utc
from utcompile.cli.parts import save_program_of_parts

NET = '''
import torch
from torch import nn


class Net(nn.Module):
    """Two convolutions, and a head that Python chooses."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.heads = nn.ModuleDict({"small": nn.Linear(8, 2), "large": nn.Linear(8, 3)})
        self.use = "small"

    def forward(self, x):
        return self.heads[self.use](self.body(x))


def make():
    torch.manual_seed(0)
    return Net()
'''
PARTS = ("--within", "body", "--input-size", "1,12,12")


@pytest.fixture
def model(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "net.py").write_text(NET)
    return "-m", f"{tmp_path / 'net.py'}:make"


def test_inspect_and_explain_show_each_part(model: tuple[str, str]) -> None:
    found = parsed("inspect", *model, *PARTS)["parts"]
    assert set(found) == {"body"} and found["body"]["operations"]["conv2d"] == 2
    assert "part body" in passed("inspect", *model, *PARTS).stdout
    plan = parsed("explain", *model, *PARTS, "-r", "lora/all_conv", "--train", "module:heads.small")
    assert len(plan["parts"]["body"]["sites"]) == 2 and plan["trained_outside"] == [
        "heads.small.weight",
        "heads.small.bias",
    ]
    said = passed("explain", *model, *PARTS, "-r", "lora/all_conv", "--train", "none", "--at", "body.2").stdout
    assert "part body" in said and "2 sites in 1 part" in said
    nothing = ("explain", *model, *PARTS, "-r", "lora/all_linear", "--train", "none")
    refused(*nothing, says=("matched 0 places",))
    refused("explain", *model, *PARTS, "-r", "lora/all_conv", "--memory", says=("--memory is for one graph",))
    refused("explain", *model, *PARTS, "-r", "lora/all_conv", "--svg", "a.svg", says=("--svg is for one graph",))
    refused("inspect", *model, "--within", "bod", says=("names no submodule", "body"))


@pytest.mark.full
def test_a_run_with_tuned_parts_goes_the_whole_way(model: tuple[str, str], tmp_path: Path) -> None:
    data, run = write_data(tmp_path / "data.npz"), tmp_path / "run"
    common = ("--epochs", "2", "--batch-size", "8", "--lr", "0.01", "-d", data)
    rules = ("-r", "lora/all_conv", "--var", "r=2", "--train", "module:heads.small")
    done = passed("train", *model, *PARTS, *rules, *common, "-o", run)
    assert "there is no page of the run" not in done.stderr
    text = (run / "report.html").read_text()
    for words in (
        "Confusion",
        "Worst by loss",
        "Latency",
        "absorbed",
        "What is inserted in body",
        "the parts&#x27; FLOPs",
    ):
        assert words in text
    said = parsed("report", run, "--trust")
    assert said["notes"] == [] and set(said["latency_ms"]) == {"base", "tuned", "folded"}
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["model"]["within"] == ["body"] and list(manifest["parts"]) == ["body"]
    assert manifest["inputs"] == {"x": {"shape": [2, 1, 12, 12], "dtype": "float32"}}
    assert parsed("evaluate", run, "--trust")["figures"]["accuracy"] == best_accuracy(run)
    report = parsed("fold", run, "-o", tmp_path / "folded", "--trust")
    assert [site["status"] for site in report["sites"]] == ["absorbed"] * 2
    sys.path.insert(0, str(tmp_path))
    try:
        from net import make  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
    folded, x = make().eval(), torch.rand(3, 1, 12, 12)
    folded.load_state_dict(load_file(tmp_path / "folded/model.safetensors"))
    program = torch.export.load(tmp_path / "folded/model.pt2").module()
    torch.testing.assert_close(program(x=x), folded(x))
    passed("export", run, "-o", tmp_path / "m.onnx", "--trust")
    passed("verify", tmp_path / "m.onnx", run, "--trust")
    refused("export", run, "-o", tmp_path / "peft", "--peft", "--trust", says=("parts of the model are tuned",))
    again = passed("train", "--resume", "-o", run, "--trust")
    assert "epoch 2/2" not in again.stderr


def best_accuracy(run: Path) -> float:
    last = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return max(entry["validation_accuracy"] for entry in last)


def test_code_that_torch_cannot_export_is_named(tmp_path: Path) -> None:
    class Chooses(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if bool(x.sum() > 0) else -x

    said = save_program_of_parts(Chooses(), (torch.randn(2, 3),), tmp_path / "model.pt2")
    assert said.startswith("no model.pt2: torch cannot export") and not (tmp_path / "model.pt2").exists()
    with pytest.raises(utc.UtcError, match="leave out --svg"):
        from utcompile.cli.parts import check_one_graph

        check_one_graph(["body"], svg=Path("x.svg"))
