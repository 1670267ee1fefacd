"""Parity: what a report says, and files that do not fit their model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from utcompile.deploy import compare, export_onnx, verify_onnx
from utcompile.errors import UtcError


class Named(nn.Module):
    def __init__(self, key: str = "logits") -> None:
        super().__init__()
        self.linear, self.key = nn.Linear(4, 3), key

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return {self.key: self.linear(pixels), "best": self.linear(pixels).argmax(1)}


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Named, Path]:
    torch.manual_seed(0)
    model = Named()
    return model, export_onnx(model, tmp_path / "m.onnx", torch.randn(2, 4)).path


def test_report(exported: tuple[Named, Path]) -> None:
    model, path = exported
    report = verify_onnx(path, model, torch.randn(2, 4), batch_sizes=(1, 5))
    assert report.passed and report.batch_sizes == (1, 2, 5) and report.max_error < 1e-5
    assert [(e.output, e.batch, e.source) for e in report.outputs] == [
        (name, batch, source)
        for batch, source in ((2, "example"), (1, "random"), (5, "random"))
        for name in ("logits", "best")
    ]
    assert str(report).startswith("m.onnx: equal in ONNX Runtime and PyTorch, largest difference")
    report.require()


def test_changed_model(exported: tuple[Named, Path]) -> None:
    model, path = exported
    with torch.no_grad():
        model.linear.bias[1] -= 50
    report = compare(model, path, torch.randn(2, 4))
    assert not report.passed and report.worst.output in ("logits", "best") and report.max_error >= 49
    assert "NOT EQUAL" in str(report) and "DIFFERS" in str(report)
    with pytest.raises(
        UtcError, match=r"ONNX Runtime and PyTorch disagree on 'best' at batch size 2: \|difference\| \d, allowed 0\b"
    ):
        report.require()


def test_integers_must_be_equal(exported: tuple[Named, Path]) -> None:
    model, path = exported
    with torch.no_grad():
        model.linear.bias[1] -= 50
    report = compare(model, path, torch.randn(2, 4), tolerance=1e3)
    assert [entry.output for entry in report.outputs if not entry.passed] == ["best"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "there is no such ONNX file"),
        (b"", "ONNX Runtime cannot open the file"),
        (b"not onnx at all", "ONNX Runtime cannot open the file\n  why: "),
    ],
)
def test_no_onnx_file(content: bytes | None, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UtcError) as caught:
        verify_onnx(path, Named(), torch.randn(2, 4))
    assert str(caught.value).startswith(f"{path}: {expected}")


def test_other_names_and_shapes(exported: tuple[Named, Path]) -> None:
    _, path = exported

    class Other(nn.Module):
        def forward(self, pixel: Tensor) -> Tensor:
            return pixel

    def message(model: nn.Module, *inputs: Tensor) -> str:
        with pytest.raises(UtcError) as caught:
            verify_onnx(path, model, inputs)
        return str(caught.value)

    assert message(Other(), torch.randn(2, 4)) == "the ONNX file has no input 'pixel'\n  fix: did you mean 'pixels'?"
    assert message(Named("logit"), torch.randn(2, 4)) == (
        "the ONNX file has no output 'logit'\n  why: the model returns logit, best; the file logits, best\n"
        "  fix: did you mean 'logits'?"
    )
    wide = Named()
    wide.linear = nn.Linear(5, 3)
    assert message(wide, torch.randn(2, 5)) == (
        "the ONNX file's input 'pixels' is of shape (batch, 4), not (2, 5)\n"
        "  fix: give the size it was exported with, or export it again at this size"
    )
    deep = Named()
    deep.linear = nn.Linear(4, 7)
    assert (
        message(deep, torch.randn(2, 4)) == "output 'logits' is of shape (2, 7) in PyTorch and (2, 3) in ONNX Runtime"
    )
