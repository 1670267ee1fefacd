"""Sizes behind what may be cut off: right at every size, or a guard."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import utcompile as utc

T = torch.Tensor


class Joined(nn.Module):
    """Rows that are cut off, next to as many zeros."""

    def __init__(self, cut: Callable[[T], T]) -> None:
        super().__init__()
        self.cut = cut

    def forward(self, x: T) -> T:
        h = self.cut(x)
        return torch.cat([h, torch.zeros(h.shape[0], 1, 4)], 1)


class Rows(nn.Module):
    """A number of rows that is padded to a multiple of three, and counted."""

    def forward(self, x: T) -> T:
        h = x[:2]
        h = F.pad(h, (0, 0, 0, 0, 0, -h.shape[0] % 3))
        return h * len([*h])


CUTS = {
    "a constant": lambda x: x[:6],
    "from the end": lambda x: x[-6:],
    "a size that does not vary": lambda x: x[: min(x.shape[1], 6)],
    "narrow": lambda x: x.narrow(0, 0, min(x.shape[0], 6)),
    "topk": lambda x: x.topk(min(x.shape[0], 6), 0).values,
    "from a start": lambda x: x[3:],
}


def _calls(model: nn.Module, example: int) -> dict[int, str]:
    captured = utc.capture(model, torch.randn(example, 8, 4))
    found = {}
    for batch in (1, 2, 3, 5, 6, 7, 12):
        x = torch.randn(batch, 8, 4)
        try:
            found[batch] = "equal" if torch.equal(captured(x), model(x)) else "WRONG"
        except utc.UtcError:
            found[batch] = "guard"
    return found


@pytest.mark.parametrize("example", [6, 9, 2])
@pytest.mark.parametrize("cut", CUTS)
def test_rows_that_are_cut_off(cut: str, example: int) -> None:
    found = _calls(Joined(CUTS[cut]), example)
    assert set(found.values()) <= {"equal", "guard"}
    assert found[12 if example > 6 else example] == "equal"


@pytest.mark.parametrize("example", [1, 2, 4])
def test_rows_that_are_counted(example: int) -> None:
    assert set(_calls(Rows(), example).values()) <= {"equal", "guard"}


def test_a_number_that_is_computed_gives_rows_that_are_right_everywhere() -> None:
    assert set(_calls(Joined(CUTS["narrow"]), 7).values()) == {"equal"}
