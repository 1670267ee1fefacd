"""Packed projections whose keys and values get a learned prefix: attention keeps the queries, and not all three."""

from __future__ import annotations

import copy

import pytest
import torch
from support import architectures
from support import models as zoo
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

import utcompile as utc
from utcompile.memory.planned import plan_graph


def ways(tuned: utc.TunedModule) -> list[str]:
    _, savings, _ = plan_graph(tuned.graph, tuned, tuned.follows_mode)
    return [s.how for s in savings]


def step(module: nn.Module, x: torch.Tensor) -> tuple[list[torch.Tensor], int]:
    """The gradients, and the bytes of what is kept for them."""
    seen: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        seen[t.untyped_storage()._cdata] = t.untyped_storage().nbytes()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        loss = module(x).square().sum()
    parameters = [p for p in module.parameters() if p.requires_grad]
    return list(torch.autograd.grad(loss, parameters)), sum(seen.values())


def test_each_attention_keeps_its_queries_alone() -> None:
    _, tuned, x = zoo.compiled("vit", "prefix/prefix")
    zoo.shake(tuned, 0.1)
    plain = copy.deepcopy(tuned)
    plain.memory = None
    assert ways(tuned) == ["queries alone"] * len(tuned.sites)
    (found, kept), (expected, before) = step(tuned, x), step(plain, x)
    assert all(map(torch.equal, found, expected)) and kept < 0.95 * before


@pytest.mark.parametrize(("kind", "rules"), [("vit of two blocks", "lora/all_linear"), ("bert", "prefix/prefix")])
def test_where_keys_and_values_are_kept_or_apart_nothing_is_copied(kind: str, rules: str) -> None:
    model, inputs = architectures.make(kind)
    assert "queries alone" not in ways(utc.compile(model, rules, inputs, verify="shapes"))
