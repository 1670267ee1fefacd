"""Folded equals unfolded, in float64 to rounding; what cannot fold says why; `tuned` stays as it was."""

from __future__ import annotations

import copy
from functools import cache
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import models as zoo
from support.cases import in_pairs
from support.draws import examples
from torch import nn

import utcompile as utc

CASES = [
    ("resnet", "lora/all_conv", "absorbed"),
    ("convnext", "lora/all_linear", "absorbed"),
    ("convnext", "u_tuning/dual_foldable", "widened"),
    ("efficientnet", "convnet/inverted_residual_foldable", "absorbed widened"),
    ("mixer", "lora/all_linear", "absorbed"),
    ("mixer", "u_tuning/dual_foldable", "widened"),
    ("vit", "u_tuning/dual_foldable", "absorbed widened"),
    ("swin", "u_tuning/dual_foldable", "absorbed widened"),
    ("vit", "u_tuning/dual", "kept"),
    ("resnet", "convnet/residual_parallel", "kept"),
]
# test_main_job.py folds these in float32
IN_THE_MAIN_JOB = ("lora/all_conv", "u_tuning/dual_foldable", "convnet/inverted_residual_foldable")


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize(("kind", "rules", "statuses"), CASES)
def test_folded_equals_unfolded(kind: str, rules: str, statuses: str) -> None:
    model, tuned, x = zoo.compiled(kind, rules)
    zoo.shake(tuned)
    tuned.double()
    mode, graph = tuned.training, str(tuned.graph)
    state = {k: v.clone() for k, v in tuned.state_dict().items()}
    folded, report = utc.fold(tuned)
    assert {s.status for s in report.sites} == set(statuses.split())
    assert [s.id for s in report.sites] == [s.id for s in tuned.sites]
    assert tuned.training == mode and str(tuned.graph) == graph
    assert all(torch.equal(v, state[k]) for k, v in tuned.state_dict().items())
    y = torch.randn(3, *x.shape[1:], dtype=torch.float64)
    tuned.eval()
    with torch.no_grad():
        assert relative(folded(y), tuned(y)) < 1e-12
        # and far more than rounding would move: the tuners do matter
        assert relative(tuned(y), model.double()(y)) > 1e-4
    assert all(s.max_error < 1e-12 for s in report.sites)


@pytest.mark.parametrize(("kind", "rules", "statuses"), [case for case in CASES if case[1] not in IN_THE_MAIN_JOB])
def test_folded_equals_unfolded_in_float32(kind: str, rules: str, statuses: str) -> None:
    _, tuned, x = zoo.compiled(kind, rules)
    zoo.shake(tuned)
    folded, report = utc.fold(tuned)
    assert {s.status for s in report.sites} == set(statuses.split())
    tuned.eval()
    y = torch.randn(3, *x.shape[1:])
    with torch.no_grad():
        assert relative(folded(y), tuned(y)) < 1e-5  # the bar of the project


def test_everything_absorbed_loads_into_the_original_architecture() -> None:
    _, tuned, x = zoo.compiled("resnet", "lora/all_conv")
    zoo.shake(tuned)
    folded, _ = utc.fold(tuned, strict=True)
    again, _ = zoo.make("resnet")
    again.load_state_dict(folded.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(again(x), folded(x), rtol=1e-5, atol=1e-5)
    assert [n.op for n in folded.graph.nodes] == [n.op for n in zoo.captured("resnet").graph.nodes]


def test_widening_leaves_the_same_operations() -> None:
    captured = zoo.captured("vit")
    _, tuned, _ = zoo.compiled("vit", "u_tuning/dual_foldable")
    folded, _ = utc.fold(tuned, strict=True)
    assert [(n.op, str(n.target)) for n in folded.graph.nodes] == [(n.op, str(n.target)) for n in captured.graph.nodes]
    assert (
        folded.get_submodule("blocks.0.mlp.fc1").out_features
        == captured.get_submodule("blocks.0.mlp.fc1").out_features + 10
    )


def test_strict_and_untuned_and_what_is_no_graph() -> None:
    model, tuned, x = zoo.compiled("vit", "u_tuning/dual")
    with pytest.raises(utc.UtcError, match=r"24|12 of 12 tuners cannot be folded"):
        utc.fold(tuned, strict=True)
    captured = zoo.captured("vit")
    folded, report = utc.fold(captured)
    assert report.sites == () and torch.equal(folded(x), captured(x))
    with pytest.raises(utc.UtcError, match="fold takes a TunedModule"):
        utc.fold(model)  # type: ignore[arg-type]


# --- ffns of every make ------------------------------------------------------------------------------------------------


class Ffn(nn.Module):
    """`x + γ·W2(σ(W1 n) [⊙ W3 n])`, with what may be between."""

    def __init__(self, act: nn.Module, conv: bool, gated: bool, bias: bool, gamma: float | None, norm: str) -> None:
        super().__init__()
        make = (lambda i, o: nn.Conv2d(i, o, 1, bias=bias)) if conv else (lambda i, o: nn.Linear(i, o, bias=bias))
        self.norm = nn.BatchNorm2d(6) if conv else nn.LayerNorm(6)
        self.fc1, self.fc2, self.act, self.drop = make(6, 10), make(10, 6), act, nn.Dropout(0.3)
        self.fc3 = make(6, 10) if gated else None
        self.between = nn.BatchNorm2d(10) if norm == "batch" and conv else nn.LayerNorm(10) if norm == "layer" else None
        shape = (6, 1, 1) if conv else (6,)
        self.gamma = None if gamma is None else nn.Parameter(gamma * torch.randn(shape))
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                nn.init.uniform_(m.running_var, 0.5, 2)
                nn.init.normal_(m.running_mean)
                nn.init.normal_(m.weight)
                nn.init.normal_(m.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = self.norm(x)
        h = self.fc1(n)
        if isinstance(self.between, nn.BatchNorm2d):
            h = self.between(h)
        a = self.act(h)
        if self.fc3 is not None:
            a = a * self.fc3(n)
        a = self.drop(a)
        if isinstance(self.between, nn.LayerNorm):
            a = self.between(a)
        y = self.drop(self.fc2(a))
        return x + (y if self.gamma is None else y * self.gamma)


PATTERN = """
version: 1
name: t
rules:
  - name: f
    match: |
      n = norm(x)
      h = pointwise(n)
      a = activation((norm | skip)(h))
      g = (mul | skip)(a)
      c = pointwise((norm | skip)((dropout | skip)(g)))
      y = branch_tail(c)
    insert: {parallel: n -> y, tuner: {kind: adapter, dim: 3, activation: same as a, scale: %s}}
"""


@pytest.mark.parametrize(
    ("conv", "gated", "bias", "gamma", "scale"),
    in_pairs([False, True], [False, True], [True, False], [None, 1.0, 1e-6], ["none", "scalar", "channel"]),
)
def test_an_ffn_of_any_make_widens(conv: bool, gated: bool, bias: bool, gamma: float | None, scale: str) -> None:
    captured, x = _captured_ffn(conv, gated, bias, gamma)
    tuned = utc.match(copy.deepcopy(captured), PATTERN % scale).apply()
    zoo.shake(tuned, 0.5)
    tuned.double().eval()
    folded, report = utc.fold(tuned)
    assert [s.status for s in report.sites] == ["widened"], report
    assert relative(folded(x.double()), tuned(x.double())) < 1e-12


@cache
def _captured_ffn(conv: bool, gated: bool, bias: bool, gamma: float | None) -> tuple[utc.CapturedModule, torch.Tensor]:
    model = Ffn(nn.SiLU(), conv, gated, bias, gamma, "batch" if conv else "").eval()
    x = torch.randn(2, 6, 5, 5) if conv else torch.randn(2, 5, 6)
    return utc.capture(model, x), x


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Ffn(nn.ReLU(), False, False, True, None, "layer"), "layer_norm .* is on the way"),
        (lambda: Ffn(nn.PReLU(), False, False, True, None, ""), None),
    ],
)
def test_counter_examples_are_kept_or_refused(make: object, reason: str | None) -> None:
    model, x = make().eval(), torch.randn(2, 5, 6)  # type: ignore[operator]
    if reason is None:  # no adapter has PReLU's parameters
        with pytest.raises(utc.UtcError, match="no module computes the activation"):
            utc.compile(model, PATTERN % "none", x)
        return
    tuned = utc.compile(model, PATTERN % "none", x)
    zoo.shake(tuned, 0.5)
    _, report = utc.fold(tuned)
    assert report.sites[0].status == "kept"
    import re

    assert re.search(reason, report.sites[0].reason), report.sites[0].reason


def test_reading_the_stream_before_the_norm_is_kept() -> None:
    model, x = Ffn(nn.GELU(), False, False, True, None, "").eval(), torch.randn(2, 5, 6)
    tuned = utc.compile(model, (PATTERN % "none").replace("n -> y", "x -> y"), x)
    _, report = utc.fold(tuned)
    assert "it reads x, and the layer parallel to it" in report.sites[0].reason


@pytest.mark.parametrize(("scale", "act"), [("input", "same as a"), ("none", "relu"), ("none", "gelu")])
def test_a_gate_or_another_activation_is_kept(scale: str, act: str) -> None:
    model, x = Ffn(nn.SiLU(), False, False, True, None, "").eval(), torch.randn(2, 5, 6)
    tuned = utc.compile(model, (PATTERN % scale).replace("same as a", act), x)
    zoo.shake(tuned)
    folded, report = utc.fold(tuned)
    assert report.sites[0].status == "kept"
    assert torch.equal(folded(x), tuned.eval()(x))


# --- inverted residuals ------------------------------------------------------------------------------------------------


class Inverted(nn.Module):
    def __init__(
        self,
        act: str = "relu6",
        second: str = "",
        kernel: int = 3,
        stride: int = 1,
        squeeze: bool = False,
        multiplier: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        acts = {"relu": nn.ReLU, "relu6": nn.ReLU6, "silu": nn.SiLU, "hardswish": nn.Hardswish}
        self.pw, self.bn1, self.act1 = nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), acts[act]()
        padding = dilation * (kernel // 2)
        self.dw = nn.Conv2d(8, 8 * multiplier, kernel, stride, padding, dilation, groups=8)
        self.act2 = acts[second or act]()
        self.pwl, self.bn3 = nn.Conv2d(8 * multiplier, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.squeeze = (
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2, 1), nn.ReLU(), nn.Conv2d(2, 8, 1), nn.Sigmoid())
            if squeeze
            else None
        )
        for bn in (self.bn1, self.bn3):
            nn.init.uniform_(bn.running_var, 0.5, 2)
            nn.init.normal_(bn.running_mean)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.act2(self.dw(self.act1(self.bn1(self.pw(x)))))
        if self.squeeze is not None:
            h = h * self.squeeze(h)
        return x + self.bn3(self.pwl(h))


INVERTED = """
version: 1
name: t
rules:
  - name: b
    match: inverted_residual
    insert: {parallel: x -> y, tuner: {kind: adapter, dim: 3, activation: same as a}}
"""


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, ""), ({"act": "relu"}, ""), ({"kernel": 5}, ""), ({"dilation": 2}, ""), ({"second": "relu"}, ""),
        ({"act": "relu", "second": "relu6"}, "its activation is relu, that of the layers parallel to it is relu6"),
        ({"act": "silu"}, "silu after silu is not idempotent"),
        ({"act": "hardswish"}, "hardswish after hardswish is not idempotent"),
        ({"squeeze": True}, ""),
        ({"multiplier": 2}, "several filters a channel"),
    ],
)  # fmt: skip
def test_inverted_residuals(options: dict[str, object], reason: str) -> None:
    torch.manual_seed(0)
    model, x = Inverted(**options).eval(), torch.randn(2, 4, 7, 7)  # type: ignore[arg-type]
    tuned = utc.compile(model, INVERTED, x)
    zoo.shake(tuned, 0.5)
    tuned.double().eval()
    folded, report = utc.fold(tuned)
    assert report.sites[0].status == ("kept" if reason else "widened"), report
    assert reason in report.sites[0].reason
    assert relative(folded(x.double()), tuned(x.double())) < 1e-12


# --- shared weights, half precision, several tuners ----------------------------------------------------------------------


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.embed = nn.Linear(4, 4), nn.Embedding(4, 4)
        self.embed.weight = self.fc.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.fc(x))) + self.embed(torch.zeros(x.shape[0], dtype=torch.long))


LORA = "version: 1\nname: t\nrules:\n  - name: w\n    match: {op: linear}\n    %sinsert: {weight: h, tuner: {kind: lora, r: 2}}\n"


def test_calls_of_one_module_share_a_tuner_and_a_tie_is_cut() -> None:
    model, x = Shared().eval(), torch.randn(3, 4)
    tuned = utc.compile(model, (LORA % "").replace("weight: h", "weight: h, all_uses: true"), x)
    assert len(tuned.sites) == 1
    zoo.shake(tuned, 0.5)
    folded, report = utc.fold(tuned)
    assert report.sites[0].status == "absorbed"
    torch.testing.assert_close(folded(x), tuned.eval()(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(folded.get_submodule("embed").weight, model.embed.weight)


def test_a_tied_weight_wants_all_uses() -> None:
    with pytest.raises(utc.UtcError, match=r"the weight fc\.weight is tied to embed\.weight"):
        utc.compile(Shared().eval(), LORA % "", torch.randn(3, 4))


def test_a_weight_that_an_untuned_call_reads_too_is_kept() -> None:
    model, x = Shared().eval(), torch.randn(3, 4)
    tuned = utc.compile(model, (LORA % "select: {first: 1}\n    ").replace("weight: h", "weight: h, all_uses: true"), x)
    zoo.shake(tuned, 0.5)
    folded, report = utc.fold(tuned)
    assert report.sites[0].status == "kept" and "is shared with" in report.sites[0].reason
    assert torch.equal(folded(x), tuned.eval()(x))


def test_half_precision_keeps_what_rounding_would_eat() -> None:
    model, x = nn.Sequential(nn.Linear(64, 64)), torch.randn(3, 64)
    tuned = utc.compile(model, LORA % "", x)
    for std, status in ((1e-4, "kept"), (3.0, "absorbed")):
        torch.manual_seed(0)
        nn.init.normal_(tuned.tuner("w/0/0").lora_B, std=std)  # type: ignore[arg-type]
        _, report = utc.fold(tuned.bfloat16())
        assert report.sites[0].status == status, report
        assert status == "absorbed" or "of the tuner's effect" in report.sites[0].reason


def test_two_adapters_parallel_to_one_ffn_both_widen() -> None:
    rules = (PATTERN % "channel") + (PATTERN % "none").split("rules:\n")[1].replace("name: f", "name: g").replace(
        "dim: 3", "dim: 2"
    )
    model, x = Ffn(nn.GELU(), False, False, True, 1.0, "").eval(), torch.randn(2, 5, 6)
    tuned = utc.compile(model, rules, x)
    zoo.shake(tuned, 0.5)
    folded, report = utc.fold(tuned, strict=True)
    assert [s.status for s in report.sites] == ["widened", "widened"]
    assert folded.get_submodule("fc1").out_features == 15
    torch.testing.assert_close(folded(x), tuned.eval()(x), rtol=1e-5, atol=1e-5)


class Chain(nn.Module):
    """A random chain of layers with residual additions; ffn-like where the draw makes it so."""

    def __init__(self, acts: list[str], widths: list[int], residual: bool, reuse: bool) -> None:
        super().__init__()
        sizes = [4, *widths, 4]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))
        self.acts, self.residual, self.reuse = acts, residual, reuse

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x
        for i, layer in enumerate(self.layers):
            h = layer(h)
            if i < len(self.layers) - 1:
                h = getattr(F, self.acts[i % len(self.acts)])(h)
        y = x + h if self.residual else h
        return y + h.mean(-1, keepdim=True) if self.reuse else y


@settings(max_examples=examples(10, full=60), deadline=None)
@given(
    acts=st.lists(st.sampled_from(["relu", "gelu", "relu6", "silu"]), min_size=1, max_size=2),
    widths=st.lists(st.integers(2, 6), min_size=1, max_size=3),
    residual=st.booleans(), reuse=st.booleans(), act=st.sampled_from(["relu", "gelu", "identity"]), seed=st.integers(0, 999),
    ends=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)  # fmt: skip
def test_no_site_is_claimed_folded_whose_output_moved(
    acts: list[str], widths: list[int], residual: bool, reuse: bool, act: str, seed: int, ends: tuple[int, int]
) -> None:
    """Adapters between any two linears, and LoRA on all: whatever is reported, the outputs agree."""
    torch.manual_seed(seed)
    model, x = Chain(acts, widths, residual, reuse).eval(), torch.randn(3, 4)
    first, last = sorted(e % len(model.layers) for e in ends)
    rules = f"""
version: 1
name: t
rules:
  - name: w
    match: {{op: linear}}
    insert: {{weight: h, tuner: {{kind: lora, r: 1}}}}
  - name: u
    match: |
      h = linear(p)
      b = path(h, through=linear | activation, min=0, max=8)
      y = linear(b)
    where: ["h.path == 'layers.{first}'", "y.path == 'layers.{last}'"]
    insert: {{parallel: p -> y, tuner: {{kind: adapter, dim: 2, activation: {act}}}}}
    expect: {{optional: true}}
"""
    tuned = utc.compile(model, rules, x)
    zoo.shake(tuned, 1.0)
    tuned.double().eval()
    folded, report = utc.fold(tuned)
    with torch.no_grad():
        assert relative(folded(x.double()), tuned(x.double())) < 1e-11, report
    assert all(s.status == "absorbed" for s in report.sites if s.id.startswith("w/"))
