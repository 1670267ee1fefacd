"""Tensors of unusual layouts: captured, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import utcompile as utc

T = torch.Tensor


class Spreads(nn.Module):
    """A sparse matrix, which is the model's or given, times features."""

    def __init__(self, matrix: T | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("matrix", matrix)

    def forward(self, x: T, matrix: T | None = None) -> T:
        used = self.matrix if matrix is None else matrix
        return torch.sparse.mm(used, self.layer(x))


class Ends(nn.Module):
    """Yields its result in another form."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.layer, self.change = nn.Linear(4, 4), change

    def forward(self, x: T) -> T:
        return self.change(self.layer(x).relu())


X = torch.randn(5, 4)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_tensors_with_coordinates_are_recorded() -> None:
    matrix = torch.eye(5).to_sparse()
    own, given = Spreads(matrix).eval(), Spreads().eval()
    assert torch.equal(utc.capture(own, X, dynamic={})(X), own(X))
    assert torch.equal(utc.capture(given, (X, matrix))(X, matrix), given(X, matrix))


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", ["sparse_csr", "sparse_csc"])
def test_compressed_sparse_tensors_are_refused_by_name(layout: str) -> None:
    matrix = torch.eye(5).to_sparse(layout=getattr(torch, layout))
    with pytest.raises(utc.UtcError, match=f"the input 'matrix' is of the layout torch.{layout}"):
        utc.capture(Spreads().eval(), (X, matrix))
    with pytest.raises(utc.UtcError, match=f"the model's tensor 'matrix' is of the layout torch.{layout}"):
        utc.capture(Spreads(matrix).eval(), X)


@pytest.mark.filterwarnings("ignore")
def test_nested_tensors_are_refused_by_name() -> None:
    parts = [torch.randn(2, 4), torch.randn(3, 4)]
    for layout in (torch.strided, torch.jagged):
        with pytest.raises(utc.UtcError, match="the input 'input' is a nested tensor"):
            utc.capture(nn.Linear(4, 4).eval(), torch.nested.nested_tensor(parts, layout=layout))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "change",
    [lambda t: t.to_sparse(), lambda t: t.to_sparse_csr(), lambda t: t.to(torch.complex32), lambda t: t.to(torch.float8_e4m3fn)],
    ids=["coordinates", "compressed", "complex halves", "eight bits"],
)  # fmt: skip
def test_outputs_of_unusual_layouts_are_compared(change: Any) -> None:
    model = Ends(change).eval()
    captured = utc.capture(model, X)
    assert torch.equal(captured(X).to_dense().to(torch.complex64), model(X).to_dense().to(torch.complex64))
