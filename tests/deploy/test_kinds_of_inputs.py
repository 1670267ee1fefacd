"""Masks, lengths, grids and boxes: exported files are compared on inputs that the model takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.input_toys import IDS, MASK, Boxes, Grid, Pool, Rate
from torch import nn

import utcompile as utc
from utcompile.deploy.call import Call

CASES: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {
    "mask": (Pool(), (IDS, MASK)),
    "mask of integers": (Pool(), (IDS, MASK.long())),
    "lengths": (Rate(), (IDS, torch.tensor([6, 4]))),
    "grid_thw": (Grid(), (torch.randn(2, 6, 16), torch.tensor([[1, 2, 2], [1, 2, 3]]))),
    "boxes": (Boxes(), (torch.randn(2, 16), torch.tensor([[0.0, 1, 2.5], [1, 0.5, 3], [1, 2, 2]]))),
}


QUICK = ("lengths", "boxes")


@pytest.mark.parametrize("case", [c if c in QUICK else pytest.param(c, marks=pytest.mark.full) for c in CASES])
def test_a_model_with_such_inputs_is_exported(case: str, tmp_path: Path) -> None:
    model, example = CASES[case]
    result = utc.export_onnx(model.eval(), tmp_path / "m.onnx", example, check_inputs=example)
    assert result.parity.passed and {o.source for o in result.parity.outputs} >= {"example", "check_inputs[0]"}


def test_what_is_drawn_is_what_the_model_takes() -> None:
    model, example = CASES["boxes"]
    call = Call.of(model, example)
    _, boxes = call.random(1)
    assert boxes[:, 0].tolist() == [0, 0, 0]  # no sample 1 in a batch of 1
    _, boxes = call.random(3)
    assert boxes[:, 0].tolist() == [0, 1, 1] and not torch.equal(boxes[:, 1:], example[1][:, 1:])
    model, example = CASES["grid_thw"]
    _, grid = Call.of(model, example).random(5)
    assert {tuple(row) for row in grid.tolist()} <= {(1, 2, 2), (1, 2, 3)}
    model, example = CASES["lengths"]
    ids, lengths = Call.of(model, example).random(8)
    assert set(lengths.tolist()) <= {4, 6} and len(set(ids.flatten().tolist())) > 8


def test_projections_are_refused_by_name(tmp_path: Path) -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.r = nn.LSTM(6, 5, proj_size=3, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.r(x)[0]

    with pytest.raises(utc.UtcError, match=r"an LSTM with projections \(proj_size\) has no ONNX operator"):
        utc.export_onnx(Projected().eval(), tmp_path / "m.onnx", torch.randn(2, 4, 6))
