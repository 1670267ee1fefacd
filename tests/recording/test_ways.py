"""Ways to run one graph, as one condition where no size lies between them."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import nn

import utcompile as utc
from utcompile.graph import Symbol
from utcompile.recording.ways import Condition, absorbed, shown

T = torch.Tensor


class Thresholds(nn.Module):
    """Asks about its length in several ways that do not matter, and once in one that does."""

    def __init__(self, longest: int) -> None:
        super().__init__()
        self.longest = longest

    def forward(self, x: T) -> T:
        length = x.shape[1]
        if length == 1:
            x = x.reshape(x.shape)
        if length > 1:
            x = x.view(x.shape)
        return x if length <= self.longest else x[:, : self.longest]


def test_bounds_without_a_gap_are_one_bound() -> None:
    model = Thresholds(9)
    captured = utc.capture(model, torch.randn(2, 6, 3), dynamic={"x": {0: "B", 1: "L"}}, verify="shapes")
    assert [guard.relation for guard in captured.guards] == ["L <= 9"]
    for length in (1, 2, 9):
        x = torch.randn(4, length, 3)
        assert torch.equal(captured(x), model(x))


def at_least(name: str, size: int) -> Condition:
    terms = (((Symbol(name, 5),), Fraction(1)), ((), Fraction(-size)))
    return Condition((name, size), f"{name} >= {size}", f"{name} <= {size - 1}", bound=("ge", terms))


def test_two_bounds_of_one_size_read_as_a_range() -> None:
    way = {at_least("L", 2): True, at_least("B", 3): True, at_least("L", 10): False, at_least("H", 7): False}
    assert shown(way) == "2 <= L <= 9 and B >= 3 and H <= 6"


def test_a_gap_stays() -> None:
    class Odd(nn.Module):
        def forward(self, x: T) -> T:
            return x + 1 if x.shape[1] in (2, 3, 7) else x * 2

    captured = utc.capture(Odd(), torch.randn(2, 5, 3), dynamic={"x": {1: "L"}}, verify="shapes")
    ran = []
    for length in (1, 2, 3, 4, 5, 6, 7, 8, 11):
        x = torch.randn(2, length, 3)
        try:
            found = captured(x)
        except utc.UtcError:
            continue
        assert torch.equal(found, Odd()(x))
        ran.append(length)
    assert {4, 5, 6} <= {*ran} and not {2, 3, 7} & {*ran}


class Cut(nn.Module):
    """Where the graph has a slice, a probe at a length of 1 reads one row by its number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x
        if h.squeeze(1).dim() < h.dim():
            h = h[1 % h.shape[0]].unsqueeze(0)
        return h[:, : x.shape[0] + 2]


def test_a_probe_that_indexes_by_a_number_where_the_graph_slices_is_another_way() -> None:
    model = Cut()
    captured = utc.capture(model, torch.randn(2, 12, 4), dynamic={"x": {0: "B", 1: "L"}})
    for size in ((2, 12), (3, 9), (7, 20)):
        x = torch.randn(*size, 4)
        assert torch.equal(captured(x), model(x))


def test_an_answer_whose_opposite_needs_no_more_is_left_out() -> None:
    c, d, e = (at_least(name, 2) for name in "CDE")
    assert absorbed([{c: True}, {c: False, d: True}]) == [{c: True}, {d: True}]
    assert absorbed([{c: True, e: True}, {c: False, d: True}]) == [{c: True, e: True}, {c: False, d: True}]
    assert absorbed([{c: True, e: True}, {c: False, e: True, d: True}]) == [{c: True, e: True}, {e: True, d: True}]
