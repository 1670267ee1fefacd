"""No fold is claimed that unseen inputs disprove: renormalised tables, choices, gathers, shared and tied layers, hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import models as zoo
from torch import nn

import utcompile as utc

ROWS, WIDTH, LENGTH = 12, 6, 4
RULE = """  - name: r{i}
    match: {{op: {op}}}
    expect: {{optional: true}}
    {more}insert: {{{insert}, tuner: {{kind: {kind}}}}}
"""
STEPS = ("linear", "relu", "shared", "where", "gather", "mask", "sort", "index", "norm", "hooked", "patched", "select")
TUNERS = [
    ("linear", "weight: h, all_uses: true", "lora, r: 2"),
    ("linear", "weight: h, all_uses: true", "bias, add: true"),
    ("embedding", "weight: h, all_uses: true", "lora, r: 2"),
    ("linear", "sequential: h", "ssf"),
    ("where", "sequential: h", "ia3"),
    ("linear", "parallel: x -> h", "rep_adapter, dim: 2, groups: 1"),
    ("linear", "parallel: x -> h", "adapter, dim: 2, activation: relu"),
]


class Drawn(nn.Module):
    """A table, steps that read ids, a mask and booleans, and a head that may be tied to the table."""

    def __init__(self, steps: list[str], max_norm: bool, tied: bool) -> None:
        super().__init__()
        self.steps = steps
        self.table = nn.Embedding(ROWS, WIDTH, max_norm=1.0 if max_norm else None)
        self.shared = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(self._layer(name) for name in steps)
        self.head = nn.Linear(WIDTH, ROWS, bias=False)
        if tied:
            self.head.weight = self.table.weight

    @staticmethod
    def _layer(name: str) -> nn.Module:
        if name == "norm":
            return nn.LayerNorm(WIDTH)
        layer = nn.Linear(WIDTH, WIDTH)
        if name == "hooked":
            layer.register_forward_hook(lambda module, given, result: result * 2 + 1)
        if name == "patched":
            plain = layer.forward
            layer.forward = lambda x: plain(x).tanh()  # type: ignore[method-assign]
        return layer

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        for name, layer in zip(self.steps, self.layers, strict=True):
            x = self._step(name, layer, x, ids, mask, which)
        return self.head(x)

    def _step(self, name: str, layer: nn.Module, x: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        ids, mask, which = inputs
        if name == "relu":
            return x.relu()
        if name == "shared":
            return self.shared(x)
        if name == "where":
            return torch.where(which[:, None, None], layer(x), self.shared(x))
        if name == "gather":
            return layer(x).gather(1, (ids % LENGTH)[..., None].expand_as(x))
        if name == "mask":
            kept = mask[..., None].to(x.dtype)
            return x + (layer(x) * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True)
        if name == "sort":
            return layer(x.sort(1).values)
        if name == "index":
            return x + F.embedding(ids % WIDTH, layer.weight)
        if name == "select":
            return layer(x).masked_fill(~mask[..., None], 0.0)
        return layer(x)


def example(seed: int) -> tuple[torch.Tensor, ...]:
    """Ids of a few rows alone, a mask with a hole, one choice."""
    torch.manual_seed(seed)
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[1, 2:] = False
    return torch.randint(3, 6, (2, LENGTH)), mask, torch.tensor([True, True])


def unseen() -> tuple[torch.Tensor, ...]:
    ids = torch.arange(ROWS * 2).reshape(-1, LENGTH) % ROWS
    mask = torch.rand(len(ids), LENGTH) < 0.5
    mask[:, 0] = True
    return ids, mask, torch.arange(len(ids)) % 2 == 0


def text(tuners: list[tuple[tuple[str, str, str], int]]) -> str:
    rules = [
        RULE.format(i=i, op=op, insert=insert, kind=kind, more=f"select: {{indices: [{index}]}}\n    ")
        for i, ((op, insert, kind), index) in enumerate(tuners)
    ]
    return "version: 1\nname: t\nrules:\n" + "".join(rules)


def check(steps: list[str], max_norm: bool, tied: bool, tuners: Any, seed: int) -> None:
    torch.manual_seed(seed)
    model = Drawn(steps, max_norm, tied).eval()
    captured = utc.capture(model, example(seed))
    kept = []
    for tuner in tuners:  # those that may not stand there
        try:
            if utc.match(captured, text([tuner])).sites:
                kept.append(tuner)
        except utc.UtcError:
            continue
    try:
        tuned = utc.match(captured, text(kept)).apply()
    except utc.UtcError:
        return
    zoo.shake(tuned, 0.5)
    with torch.no_grad():  # rows of padding and of ids that training never saw have no update
        for name, parameter in tuned.named_parameters():
            if name.endswith("lora_B") and parameter.shape[0] == ROWS:
                parameter[:3] = 0
    tuned.double().eval()
    folded, report = utc.fold(tuned)
    inputs = unseen()
    with torch.no_grad():
        expected, found = tuned(*inputs), folded(*inputs)
        error = ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-3)).item()
        assert error < 1e-9, (error, str(report), steps, kept)
        if report.is_original and not {"hooked", "patched"} & {*steps}:
            again = Drawn(steps, max_norm, tied).double().eval()
            again.load_state_dict(folded.state_dict(), strict=True)
            loaded = again(*inputs)
            assert ((loaded - expected).abs().max() / expected.abs().max().clamp(min=1e-3)).item() < 1e-9


CASE = {
    "steps": st.lists(st.sampled_from(STEPS), min_size=1, max_size=4),
    "max_norm": st.booleans(),
    "tied": st.booleans(),
    "tuners": st.lists(st.tuples(st.sampled_from(TUNERS), st.integers(0, 3)), min_size=1, max_size=3),
    "seed": st.integers(0, 2**31),
}
SLOW: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=5, **SLOW)
@given(**CASE)
def test_no_fold_is_claimed_that_unseen_inputs_disprove(**case: Any) -> None:
    check(**case)


@pytest.mark.full
@settings(max_examples=1_000, **SLOW)
@given(**CASE)
def test_nor_in_a_thousand_examples(**case: Any) -> None:
    check(**case)
