"""A rule finds what it says, nothing else, and says why where it does not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache

import pytest
import timm
import torch
import torch.nn.functional as F
from support import models as zoo
from support.match_toys import ADAPT, VIT, captured_of, error, rule
from torch import nn

import utcompile as utc
from utcompile.cli.rule_tests import model_of
from utcompile.cli.sources import source_of
from utcompile.matching import Engine
from utcompile.matching.places import places
from utcompile.matching.verdict import judge
from utcompile.rules import library_patterns, shipped_rules


def count(model: nn.Module | utc.CapturedModule, text: str, x: torch.Tensor | None = None) -> int:
    if not isinstance(model, utc.CapturedModule):
        assert x is not None
        model = utc.capture(model.eval(), x)
    return len(utc.match(model, text.replace("    insert", "    expect: {optional: true}\n    insert")).sites)


# --- shipped rules -----------------------------------------------------------------------------------------------------

SHIPPED = {name: utc.RuleSet.load(name) for name in shipped_rules()}
TESTS = [(name, model_of(rules, test), test) for name, rules in SHIPPED.items() for test in rules.tests]
# read by few rules, which are tested on two others; q and v of layers of their own are also in test_peers.py
_FULL = ("timm:cait_xxs24_224", "timm:mobilenetv4_conv_small")


@pytest.mark.parametrize(
    ("name", "model", "test"),
    [pytest.param(*t, id=f"{t[0]}-{t[2].model}", marks=[pytest.mark.full] * (t[1] in _FULL)) for t in TESTS],
)
def test_shipped_rules_find_what_they_say(name: str, model: str, test: object) -> None:
    plan = utc.match(captured_of(model.removeprefix("timm:")), name, vars=test.vars)  # type: ignore[attr-defined]
    assert {r.name for r in plan.ruleset.rules} == set(test.sites)  # type: ignore[attr-defined]
    for rule_name, expected in test.sites.items():  # type: ignore[attr-defined]
        verdict = judge(rule_name, expected, [s.path for s in plan.sites if s.rule == rule_name], places(plan.view))
        assert verdict.passed, [str(verdict), *verdict.details()]


@pytest.mark.parametrize("name", sorted(shipped_rules()))
def test_shipped_rules_are_tested_on_two_unlike_architectures(name: str) -> None:
    """By the class that is built: DeiT is a Vision Transformer."""
    built = {_class_of(model) for rules, model, _ in TESTS if rules == name}
    assert len(built) > 1, built


@cache
def _class_of(model: str) -> type:
    if ".py:" in model:
        return type(source_of(model).build(None, False, (3, 32, 32)))
    with torch.device("meta"):
        return type(timm.create_model(model.removeprefix("timm:")))


@pytest.mark.parametrize(
    ("rules", "vars", "parameters"),
    [
        ("u_tuning/dual_first", {}, 110_712),
        ("u_tuning/dual", {}, 482_644),
        ("u_tuning/tri", {}, 666_964),
        ("u_tuning/single_ffn", {"scale": "none"}, 270_556),
        ("prefix/prefix", {}, 261_220),
        ("u_tuning/single_mha_prefix", {"scale": "none"}, 261_220),
        ("prompt/vpt_deep", {}, 169_060),
        ("prompt/vpt_shallow", {}, 84_580),  # ten prompts of 768, and a head of 768 · 100 + 100
        ("adapter/adaptformer", {}, 1_266_532),
        ("res_tuning/single", {}, 169_060),
        ("res_tuning/dual", {}, 482_644),
        ("res_tuning/tri", {}, 666_964),
        ("res_tuning/bypass", {}, 464_212),
    ],
)
def test_parameter_counts_of_the_papers_to_the_unit(rules: str, vars: dict[str, str], parameters: int) -> None:
    """ViT-B/16 with a 100-class head; arXiv:2303.00690 and 2310.19859."""
    assert utc.match(captured_of("vit_base_patch16_224", 100), rules, vars=vars).parameters == parameters


# --- named patterns by structure -----------------------------------------------------------------------------------------

FOUND = {
    "vit": {"attention": 6, "ffn": 6, "block": 6, "head": 1, "residual_block": 0, "inverted_residual": 0},
    "swin": {"attention": 5, "ffn": 5, "block": 5, "head": 1, "residual_block": 0, "inverted_residual": 0},
    "mixer": {
        "attention": 0,
        "ffn": 2,
        "token_mixer": 2,
        "block": 2,
        "head": 1,
        "residual_block": 0,
        "inverted_residual": 0,
    },
    "resnet": {"attention": 0, "ffn": 0, "block": 4, "head": 1, "residual_block": 4, "inverted_residual": 0},
    "convnext": {"attention": 0, "ffn": 9, "block": 9, "head": 1, "residual_block": 9, "inverted_residual": 0},
    "efficientnet": {"attention": 0, "ffn": 0, "block": 9, "head": 1, "residual_block": 9, "inverted_residual": 9},
}


@pytest.mark.parametrize("kind", FOUND)
def test_named_patterns(kind: str) -> None:
    captured = zoo.captured(kind)
    from utcompile.graph import GraphView

    engine = Engine(GraphView(captured.graph, captured), library_patterns())
    for name, wanted in FOUND[kind].items():
        pattern = library_patterns()[name]
        found = [a for a in engine.anchors(pattern) if next(engine.solve(pattern, a), None) is not None]
        assert len(found) == wanted, (name, [n.name for n in found])


def test_squeeze_excite_and_classifiers_are_no_ffn() -> None:
    captured = captured_of("mobilenetv3_small_050")
    assert count(captured, rule("ffn", "{parallel: x -> y, tuner: {kind: adapter}}")) == 0
    assert count(captured, rule("squeeze_excite")) > 0


class Tail(nn.Module):
    def __init__(self, act: Callable[[torch.Tensor], torch.Tensor], residual: bool) -> None:
        super().__init__()
        self.norm, self.a, self.b, self.gamma = (
            nn.LayerNorm(4),
            nn.Linear(4, 8),
            nn.Linear(8, 4),
            nn.Parameter(torch.ones(4)),
        )
        self.act, self.residual = act, residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.dropout(self.b(self.act(self.a(self.norm(x)))), 0.1, False) * self.gamma
        return x + y if self.residual else y


@pytest.mark.parametrize(("act", "residual", "found"), [(F.gelu, True, 1), (torch.sin, True, 0), (F.gelu, False, 0)])
def test_an_ffn_needs_an_activation_and_a_residual(
    act: Callable[..., torch.Tensor], residual: bool, found: int
) -> None:
    assert (
        count(Tail(act, residual), rule("ffn", "{parallel: x -> y, tuner: {kind: adapter}}"), torch.randn(2, 3, 4))
        == found
    )


class Heads(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Linear(4, 3), nn.Linear(4, 3), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.a(x), self.b(x.tanh())
        return (a + b) / 2 if self.how == "half" else torch.stack([a, b]).mean(0) if self.how == "stack" else a + b


@pytest.mark.parametrize(("how", "found"), [("half", 2), ("stack", 2), ("sum", 0)])
def test_a_head_may_be_an_average_of_several(how: str, found: int) -> None:
    model = Heads(how).eval()
    text = rule("{op: tanh}", "{sequential: h, tuner: {kind: adapter, activation: relu}}").replace(
        "rules:", "train: ['pattern:head']\nrules:"
    )
    plan = utc.match(utc.capture(model, torch.randn(2, 4)), text)
    assert sorted({n.split(".")[0] for n in plan.trained}) == ["a", "b"][:found]
    assert bool(plan.notes) == (not found)  # the plan says that no classifier is trained


class Ends(nn.Module):
    """Two residual layers; the last sum is the output, through an operation that moves or casts numbers alone."""

    def __init__(self, end: str) -> None:
        super().__init__()
        self.a, self.b, self.end = nn.Linear(4, 4), nn.Linear(4, 4), end
        self.gamma, self.same = nn.Parameter(torch.ones(4)), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = x + self.gamma * self.a(x.tanh())
        y = first + self.gamma * self.b(first.tanh())
        if self.end == "mean of hidden states":
            return torch.stack([x, first, y]).mean(0)
        return {"identity": self.same(y), "dropout": F.dropout(y, 0.1, self.training), "half": y / 2}[self.end]


@pytest.mark.parametrize("end", ["identity", "dropout", "half", "mean of hidden states"])
def test_the_stream_as_output_has_no_head(end: str) -> None:
    """As in BEiT without a norm at its end: the layers of a residual sum are no heads whose average is the output."""
    text = rule("{op: tanh}", "{sequential: h, tuner: {kind: adapter, activation: relu}}").replace(
        "rules:", "train: ['pattern:head']\nrules:"
    )
    plan = utc.match(utc.capture(Ends(end).eval(), torch.randn(2, 4)), text)
    assert not plan.trained and plan.notes
    assert len(utc.match(plan.module, "lora/all_linear").sites) == 2


def test_y_is_what_is_added_after_layer_scale_and_dropout() -> None:
    captured = utc.capture(Tail(F.gelu, True).eval(), torch.randn(2, 3, 4))
    (site,) = utc.match(captured, rule("ffn", "{parallel: x -> y, tuner: {kind: adapter}}")).sites
    assert site.targets[0].name == "mul" and site.source.op == "placeholder"


# --- the language --------------------------------------------------------------------------------------------------------


class Words(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.relu(x)
        b = torch.tanh(a)
        c = torch.sigmoid(a)
        q, k = torch.chunk(x, 2, dim=-1)
        return b + c + torch.cat([k * 1, q * 2], -1) + torch.relu(b).permute(0, 2, 1).contiguous().permute(0, 2, 1)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("y = relu(x)", 2),
        ("y = (tanh | sigmoid)(relu(x))", 2),
        ("y = tanh((relu | skip)(x))", 1),
        ("b = tanh(a)\nc = sigmoid(a)\ny = add(c, b)", 1),  # commutative, and a is one value
        ("b = tanh(a)\nc = relu(a)\ny = add(b, c)", 0),
        ("b = relu(x)\nc = tanh(b)\ny = relu(c)", 1),
        ("y = path(a, through=tanh | relu, max=3)\nz = add(y, w)", 2),
        ("q, k = split(x)\nm = mul(q)\ny = cat(n, m)", 1),
        ("y = softmax(x)", 0),
    ],
)
def test_patterns(pattern: str, found: int) -> None:
    text = rule(pattern + "\n", "{sequential: y, tuner: {kind: test_zero}}")
    register_zero()
    assert count(Words(), text, torch.randn(2, 4, 4)) == found


def register_zero() -> None:
    from utcompile.tuners import Tuner, TunerConfig, TunerSite, tuner_kinds

    if "test_zero" in tuner_kinds():
        return

    class ZeroConfig(TunerConfig):
        kind: str = "test_zero"

    @utc.register_tuner("test_zero")
    class Zero(Tuner):
        config_class = ZeroConfig
        forms = ("sequential",)

        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Parameter(torch.zeros(()))

        @classmethod
        def build(cls, config: object, site: TunerSite) -> Zero:
            return cls()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.p


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({}, 12),
        ({"where": "[h.channels >= 4 * x.channels]"}, 12),
        ({"where": "[h.channels > 4 * x.channels]"}, 0),
        ({"where": "[y.shape == x.shape, x.rank == 3, a.op.approximate == 'none']"}, 12),
        ({"where": "[\"h.path in ('blocks.0.mlp.fc1', 'blocks.7.mlp.fc1')\"]"}, 2),
        ({"inside": '{module: "blocks.1*"}'}, 3),
        ({"inside": '{module: "blocks.*", class: Block}'}, 12),
        ({"inside": '{module: "blocks.*", class: Attention}'}, 0),
        ({"not_inside": '{module: "blocks.1*"}'}, 9),
        ({"select": "{first: 2}"}, 2),
        ({"select": "{last: 3}"}, 3),
        ({"select": "{every: 5}"}, 3),
        ({"select": "{indices: [0, -1]}"}, 2),
        ({"select": "{first: 6, every: 2}"}, 3),
    ],
)
def test_where_inside_select(more: dict[str, str], found: int) -> None:
    assert count(captured_of(VIT), rule("ffn", ADAPT, **more)) == found


@pytest.mark.parametrize(
    ("match", "insert", "found"),
    [
        ('{module: "blocks.*.mlp"}', ADAPT, 12),
        ("{class: Mlp}", ADAPT, 12),
        ('{module: "blocks.3", class: Block}', ADAPT, 1),
        ('{module: "blocks.*.norm1"}', ADAPT, 12),
        ("{op: linear}", "{weight: h, tuner: {kind: lora}}", 49),
        ('{op: "conv2d(stride=16)"}', "{weight: h, tuner: {kind: lora}}", 1),
        ("{op: conv2d(groups=2) | gelu}", "{sequential: h, tuner: {kind: adapter}}", 12),
    ],
)
def test_modules_and_operations(match: str, insert: str, found: int) -> None:
    assert count(captured_of(VIT), rule(match, insert)) == found


def test_except_leaves_out_what_a_named_pattern_covers() -> None:
    text = rule("{op: linear}", "{weight: h, tuner: {kind: lora}}", **{"except": "[head, ffn]"})
    plan = utc.match(captured_of(VIT), text)
    assert {s.path.split(".")[-1] for s in plan.sites} == {"qkv", "proj"}


def test_site_identity_is_rule_path_and_ordinal() -> None:
    plan = utc.match(captured_of(VIT), "u_tuning/dual")
    assert [s.id for s in plan.sites[:2]] == ["mha/blocks.0/0", "mha/blocks.1/0"]
    assert plan.sites[0].path == "blocks.0" and plan.sites[0].tuner == "adapter"


def test_the_plan_prints_and_is_plain_data() -> None:
    plan = utc.match(captured_of(VIT), "u_tuning/dual")
    text = str(plan)
    assert "mha    blocks.0     parallel adapter  [B, 197, 192]  [B, 197, 192]       4,234" in text
    assert text.splitlines()[-1] == "24 sites (12 mha, 12 ffn), 294,616 parameters to train"
    assert plan.to_dict()["trained"] == ["head.weight", "head.bias"]


# --- what goes wrong -----------------------------------------------------------------------------------------------------


def test_a_rule_that_matches_nothing_names_the_nearest_miss() -> None:
    found = error(
        rule("n = norm(x)\nh = linear(n)\na = relu(h)\nc = linear((dropout | skip)(a))\ny = branch_tail(c)\n", ADAPT)
    )
    assert found.startswith("<rules>:4:5: rule 'r' matched 0 places, expected at least 1\n  why: nearest miss: ")
    assert "blocks.0.mlp.act: `a = relu(h)` fails at blocks_0_mlp_act in blocks.0.mlp.act (mlp.py:" in found
    assert "the pattern needs relu(h), and this is gelu" in found and "explain" in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (rule("ffn", ADAPT, where="[h.channels == 5]"), "`h.channels == 5` fails at .*: 768 == 5 is false in `where`"),
        (rule("ffn", ADAPT, inside='{module: "block.*"}'), r"`inside: block\.\*` fails at .*the match is inside .*blocks > blocks\.0"),
        (rule("ffn", ADAPT, expect="{exactly: 11}"), "matched 12 places, expected exactly 11"),
        (rule("ffn", ADAPT, expect="{at_most: 3}"), "matched 12 places, expected at most 3"),
        (rule("ffn", ADAPT, select="{first: 1}", expect="{at_least: 2}"), r"matched 1 places \(12 before `except` and `select`\)"),
        (rule("ffn", "{parallel: y -> x, tuner: {kind: adapter}}"), "'y' is computed from 'x'"),
        (rule("ffn", "{parallel: h -> y, tuner: {kind: lora}}"), "a lora tuner cannot be inserted as 'parallel'"),
        (rule("ffn", "{weight: a, tuner: {kind: lora}}"), "'a' is the result of gelu, which has no weight"),
        (rule("attention", "{parallel: q -> y, tuner: {kind: adapter}}"), r"a tuner cannot bring 'q' \[B, 3, 197, 64\] to 'y'"),
        (rule("ffn", ADAPT) + "train: ['module:heads.*']\n", "train: 'module:heads.\\*' selects no parameter"),
        (rule("ffn", ADAPT) + "train: ['pattern:haed']\n", "did you mean 'head'"),
    ],
)  # fmt: skip
def test_errors_say_what_where_and_why(text: str, message: str) -> None:
    import re

    found = error(text)
    assert re.search(message, found, re.DOTALL), found
    assert found.startswith("<rules>:"), found


def test_two_rules_on_one_weight() -> None:
    text = rule("{op: linear}", "{weight: h, tuner: {kind: lora}}")
    second = text.split("rules:\n")[1].replace("name: r", "name: s")
    assert "rules 'r' and 's' both tune the weight blocks.0.attn.qkv.weight" in error(text + second)


def test_explain() -> None:
    plan = utc.match(captured_of(VIT), "u_tuning/dual_first")
    text = plan.explain("blocks.3.mlp")
    assert text.splitlines()[0] == "mha: 0 sites at blocks.3.mlp" and "ffn: 0 sites at blocks.3.mlp" in text
    assert "`select` leaves out blocks_3_drop_path2" in text and "the rule matches here" in text
    assert "+ ffn/blocks.0/0: parallel adapter" in plan.explain()


def test_a_pattern_that_explodes_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[Engine.__module__], "CAP", 50)
    text = rule(
        "a = path(x, through=linear | add | norm | gelu, max=60)\nb = path(a, through=linear | add | norm | gelu, max=60)\ny = add(b, c)\n"
    )
    assert "a pattern needs more than 50 attempts" in error(text)


def test_match_wants_a_capture() -> None:
    model, x = zoo.make("vit")
    with pytest.raises(utc.UtcError, match="match takes a CapturedModule, not VisionTransformer"):
        utc.match(model, "u_tuning/dual")  # type: ignore[arg-type]
    with pytest.raises(utc.UtcError, match="TunedModule already"):
        utc.match(utc.compile(model, "u_tuning/dual", x), "u_tuning/dual")
