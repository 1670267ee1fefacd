"""What a plan says of its blocks: bytes and work of each alone, sums that come true, and a least possible that is one."""

from __future__ import annotations

import re

import pytest
import torch
from support import architectures
from torch import nn

import utcompile as utc
from utcompile.memory import MemoryPlan

RULES = ["bitfit/biases", "lora/all_linear", pytest.param("prefix/prefix", marks=pytest.mark.full)]


@pytest.fixture(scope="module", params=RULES)
def tuned(request: pytest.FixtureRequest) -> utc.TunedModule:
    torch.manual_seed(0)
    model, inputs = architectures.make("vit of two blocks")
    inputs = {name: torch.cat([value] * 8) for name, value in inputs.items()}  # so that values outweigh gradients
    return utc.compile(model, request.param, inputs, verify="shapes")


def test_what_blocks_save_adds_up(tuned: utc.TunedModule) -> None:
    """What a block's last operation alone has read is freed with it, and is not counted to the block."""
    surveyed = MemoryPlan().surveyed(tuned)
    assert len(surveyed.curve) > 1
    for point in surveyed.curve:
        expected = tuned.plan_memory(surveyed.others + point.peak).expected
        assert expected is not None and expected.peak <= point.peak and expected.flops <= point.flops
        assert expected.kept == pytest.approx(point.kept, rel=0.05)  # it may be by another block


def test_below_the_least_that_is_named_nothing_fits(tuned: utc.TunedModule) -> None:
    with pytest.raises(utc.UtcError, match="least possible") as caught:
        tuned.plan_memory(1e-6)
    named = re.search(r"inputs is ([0-9.]+)", str(caught.value))
    assert named is not None
    least = float(named[1])
    assert tuned.plan_memory(least).expected.peak <= least * tuned.memory.before.peak
    with pytest.raises(utc.UtcError, match="least possible"):
        tuned.plan_memory(0.95 * least)


@pytest.mark.parametrize("depth", [3, 5])
def test_the_first_block_has_no_work_of_the_frozen_layers_below(depth: int) -> None:
    """What is below the first tuner never runs again, so it makes no block expensive."""
    layers = [m for _ in range(depth) for m in (nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8), nn.Tanh(), nn.Sigmoid())]
    x = torch.randn(64, 8)
    rules = """
version: 1
name: last
rules:
  - {name: last, match: {op: linear}, inside: {module: "5|10|15|20"}, insert: {weight: h, tuner: {kind: lora, r: 2}}}
"""
    tuned = utc.compile(nn.Sequential(*layers), rules.replace("5|10|15|20", f"{5 * depth - 5}"), (x,), verify="shapes")
    (_, _, flops, _), *_ = MemoryPlan().surveyed(tuned).units
    linear = 2 * 64 * 8 * 8
    assert linear < flops < 2 * linear  # and LoRA's
