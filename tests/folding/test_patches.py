"""A patch is taken back so that nothing of it remains; a disproved site costs no other site anything."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import models as zoo
from torch import nn

import utcompile as utc
from utcompile.folding import driver
from utcompile.folding.fold_model import to_fold
from utcompile.folding.folding import Folding, Options, Unfoldable
from utcompile.folding.folds.absorb_weight import AbsorbWeight
from utcompile.folding.inputs import ProofInputs
from utcompile.folding.trial import Trial

RULE = """
version: 1
name: t
rules:
  - {name: t, match: %s, insert: {%s, tuner: {kind: %s}}}
"""


class Toy(nn.Module):
    """A convolution and a linear without biases, the linear a function; a BatchNorm; an inverted residual; an ffn."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.wide, self.deep, self.deep_norm = (
            nn.Conv2d(4, 6, 1),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.BatchNorm2d(6),
        )
        self.narrow = nn.Conv2d(6, 4, 1)
        self.weight = nn.Parameter(torch.randn(5, 4))
        self.fc1, self.fc2 = nn.Linear(5, 7), nn.Linear(7, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.conv(x)).relu()
        h = h + self.narrow(self.deep_norm(self.deep(self.wide(h).relu())).relu())
        h = F.linear(h.flatten(2).transpose(1, 2), self.weight).tanh()
        return h + self.fc2(F.gelu(self.fc1(h)))


PATCHES = {
    # what is tuned: match, how, kind, dtype
    "weights, next to them": ("{op: linear}", "weight: h", "lora, r: 1, how: branch", torch.float64),
    "weights, in their place": ("{op: linear}", "weight: h", "dora, r: 1", torch.float64),
    "a bias that is new": ("{op: linear}", "weight: h", "bias, add: true", torch.float64),
    "values": ("{op: batch_norm}", "sequential: h", "ssf", torch.float64),
    "a value, into a function": ("{op: linear}", "sequential: h", "ssf", torch.float64),
    "next to a layer": ("{op: linear}", "parallel: x -> h", "rep_adapter, dim: 2, groups: 1", torch.float64),
    "an inverted residual": ("inverted_residual", "parallel: x -> y", "adapter, dim: 2, activation: relu", torch.float64),
    "in float32": ("{op: conv}", "weight: h", "lora, r: 1", torch.bfloat16),
}  # fmt: skip


def tune(match: str, insert: str, kind: str, dtype: torch.dtype) -> utc.TunedModule:
    torch.manual_seed(0)
    model = Toy().eval()
    zoo.draw_norms(model)
    tuned = utc.compile(model, RULE % (match, insert, kind), torch.randn(2, 3, 8, 8))
    zoo.shake(tuned, 1e-4 if dtype == torch.bfloat16 else 0.3)
    return tuned.to(dtype).eval()


def everything(model: Folding) -> list[object]:
    """All that a patch may change, with the order of nodes, of readers and of names."""
    nodes = [(n.name, n.op, n.target, n.args, dict(n.kwargs), dict(n.meta), list(n.users)) for n in model.graph.nodes]
    tables = [
        (path, name, {key: id(value) for key, value in getattr(module, name).items()})
        for path, module in model.root.named_modules()
        for name in ("_parameters", "_buffers", "_modules")
    ]
    return [nodes, tables, dict(model.changed), dict(model.gone), model._view, set(model._others)]


@pytest.mark.parametrize("name", PATCHES)
def test_what_is_disproved_leaves_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every patch is applied, proven, and then refused: the folded model is the tuned one."""
    undone = Counter[str]()

    class Watched(Trial):
        def __init__(self, model: Folding) -> None:
            super().__init__(model)
            self.before = everything(model)

        def undo(self) -> None:
            applied = everything(self.model) != self.before
            super().undo()
            after = everything(self.model)
            assert [a for a, b in zip(after, self.before, strict=True) if a != b] == []
            undone["applied" if applied else "nothing"] += 1

    def refuse(*_: Any) -> None:
        raise Unfoldable("not today")

    for fold in driver.registered_folds():
        monkeypatch.setattr(type(fold), "trusted", False)  # that planning changes nothing is checked too
    monkeypatch.setattr(driver, "Trial", Watched)
    monkeypatch.setattr(driver, "_checked", refuse)
    tuned = tune(*PATCHES[name])
    half = PATCHES[name][-1] == torch.bfloat16
    folded, report = utc.fold(tuned, float32=half)
    reasons = {s.reason for s in report.sites}
    assert "not today" in reasons and all(s.status == "kept" for s in report.sites)
    assert undone["applied"] == sum(s.reason == "not today" for s in report.sites) and not undone["nothing"]
    assert str(folded.graph) == str(tuned.graph) and list(folded.state_dict()) == list(tuned.state_dict())
    assert all(torch.equal(v, folded.state_dict()[k]) for k, v in tuned.state_dict().items())


def test_a_disproved_site_costs_one_plan_and_one_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear, not quadratic: of N sites with two that are wrong, N are planned and N are proven."""
    planned, proven = Counter[str](), Counter[str]()
    plan, proof = AbsorbWeight.plan, driver.SiteProof

    def sometimes_wrong(self: AbsorbWeight, site: Any, model: Folding) -> Any:
        planned[site.id] += 1
        patch, bias = plan(self, site, model), f"{site.tuned.path}.bias"
        if site.tuned.path in ("2", "5"):
            return replace(patch, values={**patch.values, bias: model.state(bias) + 1e-6})
        return patch

    def counted(model: Folding, sources: Any, outputs: Any, muted: str) -> Any:
        proven.update(n.name for n in outputs)
        return proof(model, sources, outputs, muted)

    monkeypatch.setattr(AbsorbWeight, "plan", sometimes_wrong)
    monkeypatch.setattr(driver, "SiteProof", counted)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(8))).eval()
    tuned = utc.compile(model, RULE % ("{op: linear}", "weight: h", "lora, r: 1"), torch.randn(2, 4))
    zoo.shake(tuned, 0.3)
    folded, report = utc.fold(tuned.double().eval())
    assert [s.status for s in report.sites] == ["kept" if i in (2, 5) else "absorbed" for i in range(8)]
    assert set(planned.values()) == {1} and len(planned) == 8
    assert set(proven.values()) == {1} and len(proven) == 8
    for i in (2, 5):
        assert torch.equal(folded.get_parameter(f"{i}.bias"), tuned.get_parameter(f"{i}.bias"))
        assert torch.equal(folded.get_parameter(f"{i}.weight"), tuned.get_parameter(f"{i}.weight"))


def test_a_patch_that_was_taken_back_can_be_applied_again() -> None:
    tuned = tune(*PATCHES["an inverted residual"])
    model = to_fold(tuned, ProofInputs(tuned), Options())
    site = driver.Site.of(tuned.sites[0], model.graph, model.root)
    (fold,) = (f for f in driver.registered_folds() if f.name == "widen")
    patch, before = fold(site, model), everything(model)
    texts = []
    for _ in range(2):
        trial = Trial(model)
        trial.apply(patch)
        texts.append([(n.op, str(n.target), n.meta.get("value")) for n in model.nodes()])
        trial.undo()
        assert everything(model)[:4] == before[:4]
    assert texts[0] == texts[1] and texts[0] != [(n.op, str(n.target), n.meta.get("value")) for n in model.nodes()]
