"""Sessions, the two builds of ONNX Runtime, latency and accuracy of a file."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import nn

from utcompile.deploy import accuracy_onnx, export_onnx, latency, onnxruntime_conflict, session
from utcompile.errors import UtcError


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return export_onnx(nn.Linear(8, 4), tmp_path_factory.mktemp("onnx") / "m.onnx", torch.randn(1, 8)).path


def test_session(linear: Path) -> None:
    assert session(linear, threads=1).get_inputs()[0].shape == ["batch", 8]
    with pytest.raises(UtcError, match="threads is 0\n  fix: pass 1 or more"):
        session(linear, threads=0)
    with pytest.raises(
        UtcError, match=r"ONNX Runtime has no 'CudaExecutionProvider'\n  why: this build offers .*CPUExec"
    ):
        session(linear, providers=["CudaExecutionProvider"])


def test_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"onnxruntime-gpu": "1.31.1"}

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    assert onnxruntime_conflict() is None
    installed["onnxruntime"] = "1.30.0"
    assert onnxruntime_conflict() == (
        "onnxruntime 1.30.0 and onnxruntime-gpu 1.31.1 are both installed and overwrite one another's files. "
        "Uninstall all of them (pip uninstall onnxruntime onnxruntime-gpu), then install the one you need."
    )


def test_latency_orders_small_and_large(linear: Path, tmp_path: Path) -> None:
    layers = [nn.Linear(8, 1024), *(nn.Linear(1024, 1024) for _ in range(4)), nn.Linear(1024, 4)]
    large = export_onnx(nn.Sequential(*layers), tmp_path / "large.onnx", torch.randn(1, 8)).path
    measured = latency({"small": linear, "large": large}, torch.randn(1, 8), batch_size=4, rounds=20, threads=1)
    assert list(measured) == ["small", "large"] and measured["small"].ratio == 1.0
    assert measured["large"].ratio > 2 and measured["large"].median > measured["small"].median
    for entry in measured.values():
        assert 0 < entry.lower <= entry.median <= entry.upper and entry.rounds == 20
    assert str(measured["small"]).endswith("1.000 of the first")


def test_latency_errors(linear: Path) -> None:
    with pytest.raises(UtcError, match="there is no ONNX file to measure"):
        latency({}, torch.randn(1, 8))
    with pytest.raises(UtcError, match="2 tensors for an ONNX file with 1 inputs\n  why: it has input"):
        latency({"a": linear}, (torch.randn(1, 8), torch.randn(1, 8)))
    with pytest.raises(UtcError, match="the ONNX file has no input 'x'"):
        latency({"a": linear}, {"x": torch.randn(1, 8)})
    with pytest.raises(UtcError, match="rounds=0"):
        latency({"a": linear}, torch.randn(1, 8), rounds=0)


def test_accuracy(linear: Path) -> None:
    x = torch.randn(10, 8)
    best = torch.from_numpy(session(linear).run(None, {"input": x.numpy()})[0]).argmax(1)
    wrong = torch.where(torch.arange(10) < 3, (best + 1) % 4, best)
    batches = list(zip(x.split(4), wrong.split(4), strict=True))
    assert accuracy_onnx(linear, batches) == 0.7
    assert accuracy_onnx(linear, [({"input": x}, best)]) == 1.0
    with pytest.raises(UtcError, match="there is no sample"):
        accuracy_onnx(linear, [])
    with pytest.raises(UtcError, match=r"the first output is of shape \(4, 4\), not \(3, classes\)"):
        accuracy_onnx(linear, [(x[:4], best[:3])])
