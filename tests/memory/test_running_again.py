"""Layers that run again in backward: each sample counts once, hooks are called, and the least possible is possible."""

from __future__ import annotations

import copy
import re
from functools import partial

import pytest
import torch
from support import models as zoo
from torch import nn

import utcompile as utc
from utcompile.memory import MemoryPlan, read_budget
from utcompile.memory.units import units_of


def _images(norm: type[nn.Module]) -> nn.Module:
    blocks = [
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), norm(4, track_running_stats=True), nn.ReLU(), nn.Dropout(0.2))
        for _ in range(3)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def _table() -> nn.Module:
    blocks = [nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Linear(8, 4)) for _ in range(3)]
    return nn.Sequential(*blocks)


class _Written(nn.Module):
    """A norm that is called as a function, and a counter that is written."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = self.norm
        h = nn.functional.gelu(self.first(x))
        h = nn.functional.batch_norm(h, n.running_mean, n.running_var, n.weight, n.bias, self.training)
        out: torch.Tensor = self.last(nn.functional.gelu(h + x))
        return out


STATISTICS = {
    "batch norms": (partial(_images, nn.BatchNorm2d), "lora/all_conv", torch.randn(3, 4, 8, 8)),
    "instance norms": (partial(_images, nn.InstanceNorm2d), "lora/all_conv", torch.randn(3, 4, 8, 8)),
    "a table": (_table, "lora/all_linear", torch.randn(5, 4)),
    "as a function": (_Written, "lora/all_linear", torch.randn(5, 4)),
}


@pytest.mark.parametrize(
    "kind", [k if "table" in k or "function" in k else pytest.param(k, marks=pytest.mark.full) for k in STATISTICS]
)
def test_a_sample_counts_once_in_the_statistics(kind: str) -> None:
    """Planning is no step, and a layer that runs again has seen its input before."""
    make, rules, x = STATISTICS[kind]
    torch.manual_seed(0)
    tuned = utc.compile(make().train(), rules, (x,), vars={"r": 2}, base="follow", verify="shapes").train()
    zoo.shake(tuned, 0.2)
    plain = copy.deepcopy(tuned)
    plain.memory = None
    with pytest.raises(utc.UtcError, match="least possible"):
        tuned.plan_memory(1e-6, (x,))
    for (name, found), expected in zip(tuned.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(found, expected), name
    tuned.memory = type(tuned.memory)(tuple((u.first, u.last) for u in units_of(tuned.graph, tuned, True)))
    gradients = []
    for module in (tuned, plain):
        torch.manual_seed(1)
        module(x).square().sum().backward()
        gradients.append([p.grad for p in module.parameters() if p.grad is not None])
    for (name, found), expected in zip(tuned.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(found, expected), name
    for of_tuned, of_plain in zip(*gradients, strict=True):
        # float32, the same sums in another order
        assert (of_tuned - of_plain).abs().max() <= 1e-4 * of_plain.abs().max() + 1e-7


@pytest.mark.parametrize(("dims", "kernel"), [(1, 3), (2, 1), (2, 3)])
@pytest.mark.parametrize("how", ["branch", "reparametrised"])
def test_a_hook_on_a_tuner_is_called(dims: int, kernel: int, how: str) -> None:
    """Where the plan computes a tuner and its operation as one, the tuner's own module is not called."""
    conv = {1: nn.Conv1d, 2: nn.Conv2d}[dims]
    model = nn.Sequential(conv(8, 64, 1), nn.GELU(), conv(64, 64, kernel, padding=kernel // 2), nn.GELU())
    x = torch.randn(2, 8, *[16] * dims)
    rule = f"{{name: r, match: {{op: conv{dims}d}}, insert: {{weight: h, tuner: {{kind: lora, r: 2, how: {how}}}}}}}"
    tuned = utc.compile(model.eval(), f"version: 1\nname: t\nrules: [{rule}]", (x,), verify="shapes")
    for site in tuned.sites:
        calls: list[int] = []
        handle = tuned.get_submodule(site.name).register_forward_hook(lambda *_, calls=calls: calls.append(1))
        tuned(x)
        handle.remove()
        assert calls, site.id


@pytest.mark.parametrize(("depth", "width"), [(2, 16), pytest.param(6, 48, marks=pytest.mark.full)])
def test_the_least_that_an_error_names_is_enough(depth: int, width: int) -> None:
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))]
    x = torch.randn(40, width)
    tuned = utc.compile(nn.Sequential(*layers), "lora/all_linear", (x,), vars={"r": 2}, verify="shapes")
    for budget in (1e-6, 1):
        with pytest.raises(utc.UtcError, match="least possible") as caught:
            tuned.plan_memory(budget, (x,))
        named = re.search(r"inputs is ([0-9.]+(?: [kMG]?B)?)", str(caught.value))
        assert named is not None
        found = read_budget(named[1])
        assert isinstance(found, type(budget))
        tuned.plan_memory(found, (x,))


def test_where_nothing_trains_there_is_no_step() -> None:
    x = torch.randn(2, 4)
    tuned = utc.compile(nn.Sequential(nn.Linear(4, 4), nn.GELU()), "lora/all_linear", (x,), vars={"r": 2})
    tuned.requires_grad_(False)
    with pytest.raises(utc.UtcError, match="none of its parameters trains"):
        tuned.plan_memory(0.9, (x,))


def test_a_plan_of_another_graph_is_refused() -> None:
    x = torch.randn(8, 4)
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.GELU()) for _ in range(2)]
    tuned = utc.compile(nn.Sequential(*blocks), "lora/all_linear", (x,), vars={"r": 2})
    tuned.memory = MemoryPlan((("linear_9", "gelu_9"),))
    for call in (partial(tuned, x), partial(tuned.nested, "*")):
        with pytest.raises(utc.UtcError, match="the memory plan is that of another graph"):
            call()
