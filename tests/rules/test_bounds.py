"""Sizes in rules are bounded before anything is allocated."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import utcompile as utc

X = torch.ones(2, 4, 4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act, self.out = nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.out(self.act(self.fc(x)))


@pytest.fixture(scope="module")
def captured() -> utc.CapturedModule:
    return utc.capture(Net().eval(), X, verify="shapes")


def rule(insert: str, match: str = "{op: linear}") -> str:
    return f"version: 1\nname: big\nrules:\n  - {{name: a, match: {match}, insert: {insert}}}\n"


@pytest.mark.parametrize("size", [100_000_000, 10**9, 2**63, 10**30])
@pytest.mark.parametrize(
    ("insert", "match", "field"),
    [
        ("{weight: h, tuner: {kind: lora, r: SIZE}}", "{op: linear}", "r"),
        ("{weight: h, tuner: {kind: dora, r: SIZE}}", "{op: linear}", "r"),
        ("{parallel: x -> y, tuner: {kind: adapter, dim: SIZE}}", "{module: fc}", "dim"),
        ("{sequential: y, tuner: {kind: rep_adapter, dim: SIZE}}", "{module: fc}", "dim"),
        ("{parallel: x -> y, tuner: {kind: prefix, length: SIZE}}", "{module: fc}", "length"),
        ("{parallel: x -> y, tuner: {kind: conv_adapter, dim: 4, grid: [SIZE, 1]}}", "{module: fc}", "grid"),
    ],
)
def test_sizes_are_bounded(captured: utc.CapturedModule, insert: str, match: str, field: str, size: int) -> None:
    with pytest.raises(utc.UtcError) as caught:
        utc.match(captured, rule(insert.replace("SIZE", str(size)), match))
    assert field in str(caught.value) and "<rules>:4" in str(caught.value)


@pytest.mark.parametrize(("kind", "r"), [("lora", 17), ("dora", 20), ("lora", 65_536)])
def test_a_rank_above_the_weight_is_an_error_by_itself(captured: utc.CapturedModule, kind: str, r: int) -> None:
    with pytest.raises(utc.UtcError, match="larger than the weight, a matrix of 4 by 4"):
        utc.match(captured, rule(f"{{weight: h, tuner: {{kind: {kind}, r: {r}}}}}"))
    utc.match(captured, rule(f"{{weight: h, tuner: {{kind: {kind}, r: 16}}}}"))


def test_sizes_that_are_too_large_together_are_an_error(captured: utc.CapturedModule) -> None:
    wide = utc.capture(
        nn.Sequential(nn.Linear(4, 60_000, device="meta")).eval(), torch.ones(2, 4, device="meta"), verify="shapes"
    )
    with pytest.raises(utc.UtcError, match="parameters"):
        utc.match(
            wide,
            rule("{sequential: y, tuner: {kind: adapter, dim: 65536}}", "{op: linear}").replace(
                "sequential: y", "sequential: h"
            ),
        )
