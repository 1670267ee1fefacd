"""A plan says what its tuners cost, and what another plan would change; neither is computed before it is asked for."""

from __future__ import annotations

import json
import sys
from functools import lru_cache

import pytest
import torch
from support import models as zoo
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

import utcompile as utc
from utcompile.graph import info
from utcompile.matching import Site
from utcompile.plan import Plan
from utcompile.tuners import Tuner, TunerConfig, TunerSite, base

RULES = {
    "vit": "u_tuning/dual",
    "swin": "lora/all_linear",
    "mixer": "u_tuning/single_ffn",
    "resnet": "lora/all_conv",
    "efficientnet": "lora/all_conv",
    "convnext": "u_tuning/dual_foldable",
}
PREFIX = """
version: 1
name: prefixes
vars: {heads: 2}
rules:
  - {name: mha, match: attention, insert: {parallel: x -> y, tuner: {kind: prefix, heads: $heads, scale: channel}}}
"""


@lru_cache
def captured(kind: str) -> utc.CapturedModule:
    return zoo.captured(kind)


@lru_cache
def plan_of(kind: str, rules: str = "") -> Plan:
    if not rules and kind == "convnext":
        return utc.match(captured(kind), "u_tuning/single_ffn")
    return utc.match(captured(kind), rules or RULES[kind])


# --- cost ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("batch", [1, 2])
def test_flops_are_those_that_torch_counts(kind: str, batch: int) -> None:
    plan = plan_of(kind)
    model, x = zoo.make(kind)
    cost = plan.cost_at(batch)
    assert cost.unknown == {} and cost.sites.keys() == {s.id for s in plan.sites}
    base = zoo.flops_of(lambda: model(x[:batch]))
    tuned = plan.apply()
    assert cost.model_flops == base
    assert cost.flops == zoo.flops_of(lambda: tuned(x[:batch])) - base > 0
    assert cost.share == pytest.approx(cost.flops / base)


def saved_in_truth(plan: Plan, site: Site) -> int:
    """What autograd saves on real tensors, as the definition says it."""
    operations = [plan.view.operations[t] for t in site.targets] if site.form == "weight" else []
    values = [info(op.inputs[0]).value for op in operations] or [info(site.source).value]
    inputs = [torch.randn(v.sizes(1)).requires_grad_() for v in values]
    tuner = site.build().train()
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    with saved_tensors_hooks(keep, lambda t: t):
        if site.form == "weight" and getattr(tuner, "branch", None) is None:
            (op,), (x,) = operations, inputs
            weight = tuner(torch.randn(site.build_from.weight_shape))
            options = {k: op.attributes[k] for k in ("stride", "padding", "dilation", "groups") if k in op.attributes}
            getattr(torch.nn.functional, op.name)(x, weight, None, **options)
            kept.pop(weight.untyped_storage().data_ptr())  # it is made again: tests/tuners/test_weights.py
        else:
            outputs = [tuner(x) for x in inputs]
            assert outputs
    own = {p.untyped_storage().data_ptr() for p in tuner.parameters()}
    return sum(s.nbytes() for pointer, s in kept.items() if pointer not in own)


@pytest.mark.parametrize("kind", RULES)
def test_saved_bytes_are_those_that_autograd_saves(kind: str) -> None:
    plan = plan_of(kind)
    for site in plan.sites[:: max(1, len(plan.sites) // 8)]:
        assert plan.cost.sites[site.id].saved_bytes == saved_in_truth(plan, site), site.id


def test_reparametrised_convolutions_save_no_second_weight() -> None:
    plan = plan_of("efficientnet")
    site = next(s for s in plan.sites if s.path.endswith("conv_dw"))
    (read,) = plan.cost.sites[site.id].inputs.values()
    assert plan.cost.sites[site.id].saved_bytes == read == saved_in_truth(plan, site)


class Twice(torch.nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 4, 3, padding=1, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.relu(self.conv(x)))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_layer_that_is_called_twice_costs_twice_as_a_branch(groups: int) -> None:
    how = "branch" if groups == 1 else "reparametrised"
    text = f"version: 1\nname: t\nrules:\n  - {{name: r, match: {{op: conv2d}}, insert: {{weight: h, tuner: {{kind: lora, r: 2, how: {how}}}}}}}\n"
    x = torch.randn(1, 4, 8, 8)
    plan = utc.match(utc.capture(Twice(groups).eval(), torch.randn(2, 4, 8, 8)), text)
    (site,) = plan.sites
    assert len(plan.cost.sites[site.id].inputs) == 2
    tuned = plan.apply()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tuned(x)
    assert plan.cost.flops == counter.get_total_flops() - plan.cost.model_flops > 0
    read, hidden = 4 * 4 * 8 * 8, 4 * 2 * 8 * 8
    assert plan.cost.saved_bytes == 2 * (read + (hidden if groups == 1 else 0))


class Projections(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (torch.nn.Linear(8, 8) for _ in "qkv")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(x)
        return self.q(x) + self.k(x) + self.v(x)


def test_an_input_that_several_tuners_save_counts_once() -> None:
    text = "version: 1\nname: t\nrules:\n  - {name: r, match: {op: linear}, insert: {weight: h, tuner: {kind: lora, r: 2}}}\n"
    plan = utc.match(utc.capture(Projections().eval(), torch.randn(2, 5, 8)), text)
    each = [cost.saved_bytes for cost in plan.cost.sites.values()]
    assert len(each) == 3 and len(set(each)) == 1
    assert plan.cost.saved_bytes == sum(each) - 2 * 4 * 5 * 8
    assert plan.cost_at(3).saved_bytes == 3 * plan.cost.saved_bytes


def test_half_precision_saves_half() -> None:
    model, x = zoo.make("vit")
    half = utc.match(utc.capture(model.bfloat16(), x.bfloat16(), verify="shapes"), "u_tuning/dual")
    assert half.cost.flops == plan_of("vit").cost.flops
    assert half.cost.saved_bytes == plan_of("vit").cost.saved_bytes / 2


def test_a_prefix_counts_its_products() -> None:
    plan = plan_of("vit", PREFIX)
    tokens, channels = info(plan.sites[0].source).value.sizes(1)[1:]
    assert plan.cost.sites[plan.sites[0].id].flops == 2 * 2 * tokens * 10 * channels
    assert plan.cost.sites[plan.sites[0].id].saved_bytes == saved_in_truth(plan, plan.sites[0])


def test_costs_are_counted_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("counted")

    monkeypatch.setattr(sys.modules[Plan.__module__], "plan_cost", refuse)
    plan = utc.match(captured("vit"), "u_tuning/dual")
    assert plan.parameters and plan.explain() and repr(plan)
    plan.apply()
    with pytest.raises(AssertionError, match="counted"):
        str(plan)


def test_a_tuner_that_needs_values_is_not_counted_and_the_plan_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))

    class NeedyConfig(TunerConfig):
        kind: str = "needy"

    @utc.register_tuner("needy")
    class Needy(Tuner):
        config_class = NeedyConfig
        forms = ("parallel",)

        @classmethod
        def build(cls, config: object, site: TunerSite) -> Needy:
            return cls()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 0 if x.device.type == "meta" or float(x.sum()) else x

    text = "version: 1\nname: n\nrules:\n  - {name: r, match: ffn, insert: {parallel: x -> y, tuner: {kind: needy}}}\n"
    plan = utc.match(captured("vit"), text)
    assert plan.cost.flops == 0 and len(plan.cost.unknown) == 6
    assert "not counted: 6 sites; r/blocks.0/0: " in str(plan)
    assert plan.to_dict()["sites"][0]["flops"] is None


@pytest.mark.parametrize("init", ["xavier", "houlsby"])
def test_how_a_tuner_draws_its_start_says_nothing_of_its_cost(init: str) -> None:
    """torch's truncated normal reads what it has drawn."""
    rules = "version: 1\nname: n\nrules:\n  - {name: r, match: ffn, insert: {parallel: x -> y, tuner: {kind: adapter, dim: 2, init: KIND}}}\n"
    zero, other = (plan_of("vit", rules.replace("KIND", kind)).cost for kind in ("zero", init))
    assert other.unknown == {} and other.sites == zero.sites


def test_the_table_and_the_data_say_what_is_inserted_and_what_it_costs() -> None:
    plan = plan_of("vit")
    lines = str(plan).splitlines()
    assert lines[0].split() == ["rule", "at", "inserts", "reads", "changes", "parameters", "FLOPs", "saved"]
    assert lines[1].split()[-5:] == ["1,418", "43.5", "k", "8.53", "kB"], lines[1]
    assert lines[-2].startswith("tuners: ") and "of the model's" in lines[-2] and lines[-2].endswith("at batch 1")
    data = json.loads(json.dumps(plan.to_dict()))
    assert data["sites"][0]["config"]["dim"] == 10
    assert sum(s["flops"] for s in data["sites"]) == data["cost"]["flops"] == plan.cost.flops
    assert data["cost"]["batch"] == 1 and data["cost"]["unknown"] == {}


def test_a_plan_without_sites() -> None:
    text = PREFIX.replace("match: attention,", "match: attention, expect: {optional: true},")
    plan = utc.match(captured("resnet"), text)
    assert str(plan).splitlines()[-1] == "no sites, 0 parameters to train"
    assert (plan.cost.flops, plan.cost.saved_bytes) == (0, 0)


# --- diff ----------------------------------------------------------------------------------------------------------------


def test_a_plan_compared_with_itself() -> None:
    difference = plan_of("vit").diff(utc.match(captured("vit"), "u_tuning/dual"))
    assert not difference
    assert str(difference) == "the plans are the same"


def test_another_value_of_a_variable_changes_every_site() -> None:
    before, after = plan_of("vit"), utc.match(captured("vit"), "u_tuning/dual", vars={"dim": 16})
    difference = before.diff(after)
    assert [c.id for c in difference.changed] == [s.id for s in before.sites]
    assert dict(difference.changed[0].changes) == {"dim": (10, 16), "parameters": (1418, 1418 + 6 * (64 + 64 + 1))}
    assert difference.parameters == (before.parameters, after.parameters)
    lines = str(difference).splitlines()
    assert lines[0].startswith("~ mha blocks.0…5 (6 sites, each): dim 10 -> 16, parameters ")
    assert lines[-2] == "sites: 12 changed"
    more = after.parameters - before.parameters
    assert lines[-1] == f"parameters to train: {before.parameters:,} -> {after.parameters:,} (+{more:,})"


def test_other_rules_add_and_remove_sites_and_what_is_trained() -> None:
    before = plan_of("vit")
    after = utc.match(
        captured("vit"),
        before.ruleset.text.split("train:")[0]
        .replace("    match: ffn | gated_ffn\n", "    match: ffn\n    select: {last: 2}\n")
        .replace("  - name: mha\n    match: attention\n", "  - name: all\n    match: attention\n"),
    )
    difference = before.diff(after)
    text = str(difference)
    assert {s.id for s in difference.added} == {f"all/blocks.{i}/0" for i in range(6)}
    assert {s.id for s in difference.removed} == {
        *(f"mha/blocks.{i}/0" for i in range(6)),
        *(f"ffn/blocks.{i}/0" for i in range(4)),
    }
    assert difference.changed == () and difference.untrained == ("head.weight", "head.bias")
    assert "- ffn blocks.0…3 (4 sites, each): parallel adapter, 1,418 parameters" in text
    assert "+ all blocks.0…5 (6 sites, each): parallel adapter, 1,418 parameters" in text
    assert "- train head.weight" in text and "sites: 6 added, 10 removed" in text
    back = after.diff(before)
    assert (back.added, back.removed, back.trained) == (difference.removed, difference.added, difference.untrained)


def test_a_site_that_reads_another_value_is_changed() -> None:
    before = plan_of("vit")
    after = utc.match(captured("vit"), before.ruleset.text.replace("parallel: x -> y", "parallel: n -> y"))
    change = before.diff(after).changed[0]
    assert list(change.changes) == ["source"]
    assert str(before.diff(after)).splitlines()[0] == "~ mha blocks.0…5 (6 sites, each): source x -> n"


def test_another_kind_of_tuner_is_one_change() -> None:
    after = utc.match(captured("vit"), "u_tuning/dual_foldable")
    changes = plan_of("vit").diff(after).changed[0].changes
    assert list(changes) == ["form", "tuner", "source", "target", "parameters"]
    assert (changes["form"], changes["tuner"]) == (("parallel", "weight"), ("adapter", "lora"))


def test_a_pattern_that_finds_the_same_capture_elsewhere_is_a_change() -> None:
    text = """
version: 1
name: t
rules:
  - name: r
    match: |
      h = linear(x)
      a = gelu(h)
    insert: {sequential: h, tuner: {kind: adapter, dim: 1}}
"""
    before = utc.match(captured("vit"), text)
    after = utc.match(
        captured("vit"), text.replace("h = linear(x)\n      a = gelu(h)", "b = linear(x)\n      h = gelu(b)")
    )
    change = before.diff(after).changed[0]
    assert change.id == "r/blocks.0.mlp/0"
    assert dict(change.changes) == {
        "source": (["blocks_0_mlp_fc1"], ["blocks_0_mlp_act"]),
        "target": (["blocks_0_mlp_fc1"], ["blocks_0_mlp_act"]),
    }
    assert "~ r blocks.0.mlp: source blocks_0_mlp_fc1 -> blocks_0_mlp_act, target" in str(before.diff(after))


def test_a_difference_is_plain_data() -> None:
    difference = plan_of("vit").diff(utc.match(captured("vit"), "u_tuning/single_ffn"))
    data = json.loads(json.dumps(difference.to_dict()))
    assert data["removed"] == [f"mha/blocks.{i}/0" for i in range(6)] and data["added"] == []
    assert data["trainable_parameters"]["before"] == plan_of("vit").parameters
    assert all({"id", *difference.changed[0].changes} == set(c) for c in data["changed"])


def test_a_plan_is_compared_with_a_plan() -> None:
    with pytest.raises(utc.UtcError, match="compared with a Plan, not with str"):
        plan_of("vit").diff("u_tuning/dual")  # type: ignore[arg-type]
