"""The report says of each site what it was and what it is; `tuned` stays as it was whatever happens."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from support import models as zoo
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import utcompile as utc
from utcompile.folding.folds.absorb_weight import AbsorbWeight

LORA = "version: 1\nname: t\nrules:\n  - name: w\n    match: {op: linear}\n    insert: {weight: h, tuner: {kind: lora, r: 2}}\n"


class Ffn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(torch.relu(self.fc1(x)))


def test_a_site_has_its_parameters_and_flops_before_and_after() -> None:
    tuned = utc.compile(nn.Sequential(nn.Linear(8, 16)).eval(), LORA + "\n", torch.randn(2, 8))
    zoo.shake(tuned)
    _, report = utc.fold(tuned)
    (site,) = report.sites
    assert site.parameters == (8 * 16 + 16 + 2 * (8 + 16), 8 * 16 + 16)
    with FlopCounterMode(display=False) as counter:
        tuned(torch.randn(1, 8))
    assert site.flops == (counter.get_total_flops(), 2 * 8 * 16) == report.flops
    assert report.parameters == site.parameters
    assert site.max_error < 1e-12 and 0 < site.dtype_error < 1e-6 and site.retained == pytest.approx(1, abs=1e-6)  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["vit", pytest.param("efficientnet", marks=pytest.mark.full), "swin"])
def test_flops_are_what_torch_counts(kind: str) -> None:
    model, x = zoo.make(kind)
    rules = "convnet/inverted_residual_foldable" if kind == "efficientnet" else "u_tuning/dual_foldable"
    tuned = utc.compile(model, rules, x)
    folded, report = utc.fold(tuned)
    counted = [zoo.flops_of(lambda: module(x[:1])) for module in (tuned.eval(), folded)]  # noqa: B023  called at once
    assert report.flops is not None
    assert report.flops == pytest.approx(tuple(counted), rel=1e-9)
    assert report.flops[1] < report.flops[0]


def test_it_prints_a_table_and_is_plain_data() -> None:
    tuned = utc.compile(Ffn().eval(), LORA, torch.randn(2, 8))
    zoo.shake(tuned)
    _, report = utc.fold(tuned)
    lines = str(report).splitlines()
    assert lines[0].split() == ["site", "status", "parameters", "FLOPs", "float64", "own", "dtype", "retained"]
    assert lines[1].startswith("w/fc1/0  absorbed  192 -> 144") and lines[1].endswith("100.0%")
    assert "parameters 376 -> 280" in str(report)
    again = json.loads(json.dumps(report.to_dict()))
    assert again["sites"][0]["parameters"] == {"before": 192, "after": 144}
    assert again["parameters"] == {"tuned": 376, "folded": 280} and again["is_original"] is True


def test_a_kept_site_is_in_the_table_with_its_reason_below() -> None:
    model, x = zoo.make("vit")
    _, report = utc.fold(utc.compile(model, "u_tuning/dual", x))
    assert len(report.kept) == len(report.sites) == 12 and "12 kept" in str(report)
    assert all(f"kept {s.id}: {s.reason}" in str(report) for s in report.kept)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.embed = nn.Linear(4, 4, bias=False), nn.Embedding(4, 4)
        self.embed.weight = self.fc.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) + self.embed(torch.zeros(x.shape[0], dtype=torch.long))


def test_a_cut_tie_has_its_price() -> None:
    rules = LORA.replace("weight: h", "weight: h, all_uses: true")
    tuned = utc.compile(Tied().eval(), rules, torch.randn(2, 4))
    zoo.shake(tuned, 0.5)
    folded, report = utc.fold(tuned)
    assert report.sites[0].cloned == 4 * 4 * 4 and "64 bytes of tied weights are cloned" in report.sites[0].reason
    assert not torch.equal(folded.get_submodule("fc").weight, folded.get_submodule("embed").weight)


def as_it_is(tuned: nn.Module) -> tuple[object, ...]:
    graph = str(tuned.graph), [dict(n.meta) for n in tuned.graph.nodes]
    state = {k: v.clone() for k, v in tuned.state_dict().items()}
    flags = [(n, p.requires_grad, p.dtype) for n, p in tuned.named_parameters()]
    return graph[0], flags, [m.training for m in tuned.modules()], {k: v.tolist() for k, v in state.items()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("how", ["folded", "strict", "interrupted", "unproven"])
def test_tuned_stays_as_it_was(how: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _model, tuned, _x = zoo.compiled("vit", "u_tuning/dual")
    zoo.shake(tuned)
    tuned.train(training)
    before, random = as_it_is(tuned), torch.get_rng_state()
    if how == "interrupted":
        monkeypatch.setattr(import_module("utcompile.folding.fold_model"), "prove_model", _interrupt)
    if how == "unproven":
        monkeypatch.setattr(import_module("utcompile.folding.whole"), "_MODEL_TOLERANCE", {torch.float32: -1.0})
    if how == "folded":
        utc.fold(tuned)
    else:
        error = KeyboardInterrupt if how == "interrupted" else utc.UtcError
        with pytest.raises(error):
            utc.fold(tuned, strict=how == "strict")
    assert as_it_is(tuned) == before and torch.equal(torch.get_rng_state(), random)


def _interrupt(*_: object) -> float:
    raise KeyboardInterrupt


def test_a_model_that_raises_keeps_its_mode() -> None:
    tuned = utc.compile(Ffn().eval(), LORA, torch.randn(2, 8))
    tuned.train()
    hook = tuned.get_submodule("fc2").register_forward_pre_hook(_interrupt)
    modes = [m.training for m in tuned.modules()]
    with pytest.raises(KeyboardInterrupt):
        utc.fold(tuned)
    hook.remove()
    assert [m.training for m in tuned.modules()] == modes


def test_folding_twice_gives_the_same_bits_and_an_untuned_capture_is_only_copied() -> None:
    model, tuned, x = zoo.compiled("vit", "u_tuning/dual_foldable")
    zoo.shake(tuned)
    (first, one), (second, two) = utc.fold(tuned), utc.fold(tuned)
    assert one == two and str(first.graph) == str(second.graph)
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())
    captured = utc.capture(model, x)
    folded, report = utc.fold(captured)
    assert (report.sites, report.max_error, report.renamed) == ((), 0.0, ())
    assert str(folded.graph) == str(captured.graph) and torch.equal(folded(x), captured(x))
    assert list(folded.state_dict()) == list(captured.state_dict())


def test_a_wrong_fold_is_found_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bias that is added twice: the proof sees it, and nothing of it remains."""
    honest = AbsorbWeight.plan

    def wrong(self, site, model):  # type: ignore[no-untyped-def]
        patch = honest(self, site, model)
        if site.tuned.path == "fc1":
            return replace(patch, values={**patch.values, "fc1.bias": model.state("fc1.bias") + 1e-6})
        return patch

    monkeypatch.setattr(AbsorbWeight, "plan", wrong)
    tuned = utc.compile(Ffn().eval(), LORA, torch.randn(2, 8))
    zoo.shake(tuned)
    folded, report = utc.fold(tuned)
    assert [s.status for s in report.sites] == ["kept", "absorbed"] and "differs by" in report.sites[0].reason
    assert torch.equal(folded.get_submodule("fc1").bias, tuned.get_submodule("fc1").bias)
