"""Max-pools, and the ReLU before them, that keep a small index: the numbers and the gradients are torch's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support import models as zoo
from support.saved import saved_bytes
from torch import Tensor, nn
from torch.nn import functional as F

import utcompile as utc
from utcompile.memory import MemoryPlan, functions
from utcompile.memory.max_pool import small_index_pool
from utcompile.memory.units import units_of

SETTINGS: dict[str, tuple[Any, ...]] = {
    "overlapping": (3, 2, 1, 1, False),
    "apart": (2, 2, 0, 1, False),
    "rounded up": (3, 2, 0, 1, True),
    "dilated": ((2, 3), (1, 2), (0, 1), (2, 1), False),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("kind", SETTINGS)
def test_bits_of_results_and_gradients(kind: str, rectified: bool, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    for channels in (3, 16):  # few channels, and those that are laid next to each other
        x = torch.randn(2, channels, 13, 11).round(decimals=1)  # there are equal numbers in windows
        x = x.contiguous(memory_format=layout).requires_grad_()
        kept = small_index_pool(x, *SETTINGS[kind], rectified)
        kernel, stride, padding, dilation, ceil = SETTINGS[kind]
        own = F.max_pool2d(x.relu() if rectified else x, kernel, stride, padding, dilation, ceil)
        assert torch.equal(kept, own) and kept.stride() == own.stride()
        grad = torch.randn_like(own)
        assert torch.equal(torch.autograd.grad(kept, x, grad)[0], torch.autograd.grad(own, x, grad)[0])


def test_windows_without_numbers_above_zero_or_with_none() -> None:
    x = torch.tensor([[-1.0, 0.0, float("nan"), 1.0], [-2.0, -0.0, 2.0, 3.0]]).expand(1, 8, 2, 4).clone()
    x.requires_grad_()
    kept, own = small_index_pool(x, 2, 2, 0, 1, False, True), F.max_pool2d(x.relu(), 2)
    assert torch.equal(kept.isnan(), own.isnan()) and torch.equal(kept[..., 0], own[..., 0])
    (found,), (expected,) = (torch.autograd.grad(y.sum(), x) for y in (kept, own))
    assert torch.equal(found, expected)


class Stem(nn.Module):
    """A stem as in ResNets; `how` says how the ReLU is spelled, and what else reads its numbers."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.act, self.pool = nn.ReLU(inplace=how in ("in place", "read before", "a view")), nn.MaxPool2d(3, 2, 1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        if self.how == "a view":
            seen: Tensor = self.last(self.pool(self.act(x[:, :, :])))
            return seen + x.mean()
        y = torch.relu_(x) if self.how == "a function" else self.act(x)
        result: Tensor = self.last(self.pool(y))
        if self.how == "read twice":
            return result + y.mean()
        return result + x.mean() if self.how == "read before" else result


@pytest.mark.parametrize(
    ("how", "ways"),
    [
        ("in place", ["index"]),
        ("new", ["index"]),
        ("a function", ["index"]),
        ("read twice", ["bits", "index"]),
        ("read before", ["bits", "index"]),
        ("a view", ["bits", "index"]),
    ],
)
def test_the_relu_before_a_pool_keeps_nothing(how: str, ways: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "_SMALL", 0)
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 12)
    tuned = utc.compile(Stem(how).eval(), "lora/all_conv", (x,), verify="shapes")
    zoo.shake(tuned, 0.1)
    plain = copy.deepcopy(tuned)
    plain.memory = None

    def step(module: nn.Module) -> list[Tensor]:
        result = module(x)
        parameters = [p for p in module.parameters() if p.requires_grad]
        return [result.detach(), *torch.autograd.grad(result.square().sum(), parameters)]

    assert all(map(torch.equal, step(tuned), step(plain)))
    savings = tuned.__dict__["_planned"].savings
    assert sorted(s.how for s in savings if s.how in ("bits", "index")) == ways
    units = units_of(tuned.graph, tuned, tuned.follows_mode)
    again = copy.deepcopy(tuned)
    again.memory = MemoryPlan(again=tuple((u.first, u.last) for u in units))
    assert units and all(map(torch.equal, step(again), step(plain)))
    kept, before = (saved_bytes(m, lambda m=m: m(x).sum()) for m in (tuned, plain))
    assert kept < before
