"""What the command line offers: completion in a shell, suggestions for a need, TensorBoard, devices."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import utcompile
from utcompile.cli import train_lines
from utcompile.cli.suggest import NEEDS
from utcompile.cli.suggestions import Suggestion, ranked
from utcompile.cli.train_start import device_is_cpu
from utcompile.errors import UtcError

COMPLETED = {
    "train --schedule ": {"cosine", "onecycle", "linear", "poly", "step", "constant"},
    "train --precision ": {"no", "bf16", "fp16"},
    "train --task seg": {"segment"},
    "train --optimizer lam": {"lamb"},
    "train --recipe multi": {"multilabel"},
    "train -r lora/all": {"lora/all_conv", "lora/all_linear"},
    "train -m timm:test_vit": {"timm:test_vit", "timm:test_vit2", "timm:test_vit3", "timm:test_vit4"},
    "explain -m torchvision:deeplabv3_resnet5": {"torchvision:deeplabv3_resnet50"},
    "explain -r u_tuning/du": {"u_tuning/dual", "u_tuning/dual_foldable"},
    "suggest --for la": {"latency"},
    "rules show bitfit/n": {"bitfit/norms"},
    "compare --task te": {"text"},
    "train epoch": {"epochs="},
}


def test_a_shell_completes_values_without_torch() -> None:
    code = f"""
import contextlib, io, os, sys
from utcompile.cli import app
os.environ["_UTCOMPILE_COMPLETE"] = "complete_bash"
for line, expected in {COMPLETED!r}.items():
    words = ["utcompile", *line.split(" ")]
    os.environ |= {{"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}}
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        app(prog_name="utcompile")
    assert set(said.getvalue().split()) >= expected, (line, said.getvalue())
    assert len(said.getvalue().split()) < 12, (line, said.getvalue())
assert "torch" not in sys.modules
"""
    package = str(Path(utcompile.__file__).parents[1])
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {package!r})\n{code}"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr


def rules(name: str, folds: str, parameters: int, saved: int, **more: Any) -> Suggestion:
    options: dict[str, Any] = {"trained": 10, "flops": 100, "flops_share": 0.1, "side": False, **more}
    return Suggestion(name, 3, parameters, saved_bytes=saved, folds={folds: 3}, **options)


def test_each_need_has_its_order_and_its_reason() -> None:
    fitting = [
        rules("lora", "absorbed", 500, 900),
        rules("bias", "absorbed", 20, 700),
        rules("adapter", "widened", 800, 800),
        rules("side", "kept", 2000, 50, side=True),
        rules("wide", "kept", 5000, 990),
    ]
    first = {need: ranked(fitting, need)[0] for need in NEEDS}
    assert {need: s.name for need, s in first.items()} == {
        "latency": "lora", "memory": "side", "parameters": "bias", "accuracy": "wide",
    }  # fmt: skip
    assert [s.name for s in ranked(fitting, "latency")] == ["lora", "bias", "adapter", "wide", "side"]
    words = {"latency": "vanish", "memory": "no gradient enters", "parameters": "fewest", "accuracy": "capacity"}
    assert all(words[need] in s.reason(need) for need, s in first.items())


def test_tensorboard_gets_every_number_of_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "tensorboard")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def flush(self) -> None:
            written.append(("flushed", 0, 0))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    report = train_lines.reporter(tmp_path, 2, True)
    entry = {
        "epoch": 1,
        "train_loss": 0.5,
        "validation_loss": 0.25,
        "validation_accuracy": 0.75,
        "lr": 0.1,
        "seconds": 2,
    }
    line = report([entry])
    assert line == "epoch 1/2: loss 0.5000, validation loss 0.2500, accuracy 75.00%, 2.0 s"
    assert written == [
        ("train/loss", 0.5, 1), ("validation/loss", 0.25, 1), ("validation/accuracy", 0.75, 1),
        ("lr", 0.1, 1), ("seconds", 2, 1), ("flushed", 0, 0),
    ]  # fmt: skip
    table = (tmp_path / "metrics.csv").read_text().splitlines()
    assert table == [",".join(entry), "1,0.5,0.25,0.75,0.1,2"]


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_is_cpu("cpu") and not device_is_cpu("auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UtcError, match="there is no cuda device here"):
        device_is_cpu("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not device_is_cpu("cuda")
