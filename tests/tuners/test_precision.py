"""A base in half precision: what trains is float32, computes beside it, and folds into it; complex weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support import models as zoo
from torch import nn

import utcompile as utc

HALVES = [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.full)]
RULES = """version: 1
name: t
rules:
  - {name: w, match: %s, except: head, insert: {%s, tuner: {kind: %s}}}
train: ['pattern:head']
"""
KINDS = {
    "lora": ("{op: linear}", "weight: h", "lora, r: 2, how: branch"),
    "lora, reparametrised": ("{op: linear}", "weight: h", "lora, r: 2, how: reparametrised"),
    "dora": ("{op: linear}", "weight: h", "dora, r: 2"),
    "ssf on weights": ("{op: linear}", "weight: h", "ssf"),
    "ssf": ("{op: linear}", "sequential: h", "ssf"),
    "bias": ("{op: linear}", "weight: h", "bias, add: true"),
    "norm_affine": ("{op: layer_norm}", "weight: h", "norm_affine"),
    "adapter": ("{op: linear}", "parallel: x -> h", "adapter, dim: 2"),
    "rep_adapter": ("{op: linear}", "parallel: x -> h", "rep_adapter, dim: 2, groups: 1"),
    "prefix": ("{op: linear}", "parallel: x -> h", "prefix, length: 3"),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(8, 8, bias=False), nn.LayerNorm(8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.b(self.norm(self.a(x)).relu()))


def rules(kind: str) -> str:
    return RULES % KINDS[kind]


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def trained_dtypes(module: nn.Module) -> set[torch.dtype]:
    return {p.dtype for p in module.parameters() if p.requires_grad}


QUICK = ("lora, reparametrised", "dora", "bias", "adapter")


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.full) for k in KINDS])
def test_what_trains_is_float32_and_the_rest_as_it_was(kind: str, dtype: torch.dtype) -> None:
    x = torch.randn(4, 8, dtype=dtype)
    model = Net().eval().to(dtype)
    tuned = utc.compile(model, rules(kind), x)  # the identity at the start, bit for bit: proven in it
    assert trained_dtypes(tuned) == {torch.float32} and tuned.dtype == dtype
    assert tuned(x).dtype == dtype
    tuned(x).float().square().mean().backward()
    zoo.shake(tuned, 0.2)
    tuned.eval()
    folded, report = utc.fold(tuned, float32=True)
    rounded, _ = utc.fold(tuned)
    assert {p.dtype for p in rounded.parameters() if p.requires_grad} == set()
    with torch.no_grad():
        expected = tuned(x)
        assert error(folded(x), expected) < 0.1 and error(rounded(x), expected) < 0.1  # a few roundings of 8 bits
        with utc.disable_tuners(tuned):
            assert torch.equal(tuned(x), model(x))
    if not report.kept and kind in ("bias", "norm_affine"):
        assert {v.dtype for k, v in rounded.state_dict().items() if k.startswith("head")} == {dtype}


@pytest.mark.parametrize("dtype", HALVES)
def test_a_step_that_half_precision_loses_is_taken(dtype: torch.dtype) -> None:
    x = torch.randn(16, 8, dtype=dtype)
    tuned = utc.compile(Net().eval().to(dtype), rules("lora"), x)
    before = {n: p.detach().clone() for n, p in tuned.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-5, weight_decay=0)
    for _ in range(2):
        tuned(x).float().square().mean().backward()
        optimizer.step()
    moved = [(p != before[n]).double().mean() for n, p in tuned.named_parameters() if n in before]
    assert min(moved) > 0.9


def test_a_scaler_unscales() -> None:
    x = torch.randn(4, 8, dtype=torch.float16)
    tuned = utc.compile(Net().eval().half(), rules("lora"), x)
    scaler, parameters = torch.amp.GradScaler("cpu"), [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    before = tuned.get_parameter("head.weight").detach().clone()
    scaler.scale(tuned(x).float().square().mean()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert not torch.equal(before, tuned.get_parameter("head.weight"))


def test_the_option_says_otherwise_through_both_doors() -> None:
    x, model = torch.randn(4, 8, dtype=torch.bfloat16), Net().eval().bfloat16()
    assert trained_dtypes(utc.compile(model, rules("lora"), x, tuner_dtype="base")) == {torch.bfloat16}
    captured = utc.capture(model, x)
    assert trained_dtypes(utc.match(captured, rules("lora")).apply(tuner_dtype="base")) == {torch.bfloat16}
    with pytest.raises(utc.UtcError, match="tuner_dtype is 'half'"):
        utc.match(captured, rules("lora")).apply(tuner_dtype="half")
    double = utc.compile(Net().eval().double(), rules("lora"), x.double())
    assert trained_dtypes(double) == {torch.float64}


@pytest.mark.parametrize("kind", ["lora", *(pytest.param(k, marks=pytest.mark.full) for k in KINDS if k != "lora")])
def test_casts_copies_checkpoints_and_compilers_go_on(kind: str, tmp_path: Any) -> None:
    x = torch.randn(4, 8, dtype=torch.bfloat16)
    model = Net().eval().bfloat16()
    tuned = utc.compile(model, rules(kind), x)
    zoo.shake(tuned, 0.2)
    tuned.eval()
    expected = tuned(x)
    utc.save_tuners(tuned, tmp_path)
    again = utc.load_tuners(utc.compile(model, rules(kind), x), tmp_path).eval()
    assert torch.equal(again(x), expected) and torch.equal(copy.deepcopy(tuned)(x), expected)
    assert torch.equal(torch.compile(tuned, backend="eager", fullgraph=True)(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert error(tuned(x), expected) < 0.05
    assert tuned.float()(x.float()).dtype == torch.float32 and error(tuned(x.float()), expected) < 0.05
    assert tuned.half()(x.half()).dtype == torch.float16


@pytest.mark.parametrize(
    "insert", ["sequential: h, tuner: {kind: ssf}", "parallel: x -> h, tuner: {kind: adapter, dim: 2, scale: channel}"]
)
def test_under_autocast_a_tuner_yields_the_dtype_of_its_input(insert: str) -> None:
    """A learned scale is float32, and a layer in half precision behind it takes no float32 on the CPU."""
    x = torch.randn(4, 8, dtype=torch.bfloat16)
    text = RULES.replace("{%s, tuner: {kind: %s}}", "{" + insert + "}") % "{op: linear}"
    tuned = utc.compile(Net().eval().bfloat16(), text, x).eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert tuned(x).dtype == torch.bfloat16


def test_a_tied_head_and_a_table_train_as_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.b, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20, bias=False)
            self.head.weight = self.e.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.b(self.e(ids)).relu())

    ids, model = torch.randint(0, 20, (2, 5)), Tied().eval().half()
    text = RULES % ("{module: b}", "weight: y", "lora, r: 2")
    tuned = utc.compile(model, text.replace("pattern:head", "parameter:head.weight").replace("except: head, ", ""), ids)
    assert tuned.get_parameter("e.weight") is tuned.get_parameter("head.weight")
    assert tuned.get_parameter("e.weight").dtype == torch.float32
    zoo.shake(tuned, 0.1)
    tuned.eval()
    folded, report = utc.fold(tuned)
    assert not any("tied" in line for line in report.renamed)
    assert folded.get_parameter("e.weight") is folded.get_parameter("head.weight")
    assert folded.get_parameter("e.weight").dtype == torch.float16
    with torch.no_grad():
        assert error(folded(ids), tuned(ids)) < 0.05


# --- complex ----------------------------------------------------------------------------------------------------------


class Spectral(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.i, self.h = how, nn.Linear(2, 8), nn.Linear(8, 1)
        shape = (8, 8, 4) if how == "einsum" else (8, 8)
        self.w = nn.Parameter(torch.randn(shape, dtype=torch.cfloat) / 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        f = torch.fft.rfft(self.i(x).mT)[..., :4]
        made = torch.einsum("bix,iox->box", f, self.w) if self.how == "einsum" else (f.mT @ self.w).mT
        return self.h(torch.fft.irfft(made, n=16).relu().mT)


@pytest.mark.parametrize(("how", "match"), [("einsum", "{op: einsum}"), ("einsum", "{parameter: w}"), ("matmul", "{parameter: w}")])  # fmt: skip
def test_a_complex_weight_has_complex_factors(how: str, match: str) -> None:
    x = torch.randn(2, 16, 2)
    model = Spectral(how).eval()
    tuned = utc.compile(model, RULES.replace("except: head, ", "").replace("train: ['pattern:head']", "") % (match, "weight: h", "lora, r: 2"), x)  # fmt: skip
    tuner = tuned.tuner(tuned.sites[0].id)
    assert {p.dtype for p in tuner.parameters()} == {torch.complex64}
    with torch.no_grad():
        for parameter in tuner.parameters():
            parameter.copy_(torch.randn_like(parameter))
    tuned(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.imag.any() for p in tuner.parameters())
    tuned.eval()
    folded, report = utc.fold(tuned)
    assert report.sites[0].status == "absorbed" and report.sites[0].max_error < 1e-12 and report.is_original
    assert folded.get_parameter("w").dtype == torch.complex64 and folded.get_parameter("w").imag.any()
    y = torch.randn(3, 16, 2)
    with torch.no_grad():
        assert error(folded(y), tuned(y)) < 1e-5
        again = Spectral(how).eval()
        again.load_state_dict(folded.state_dict())
        assert error(again(y), tuned(y)) < 1e-5


def test_what_is_real_is_refused_by_name() -> None:
    captured = utc.capture(Spectral("einsum").eval(), torch.randn(2, 16, 2))
    text = RULES.replace("except: head, ", "").replace("train: ['pattern:head']", "")
    with pytest.raises(utc.UtcError, match="a dora tuner computes with real numbers, and the weight w is complex64"):
        utc.match(captured, text % ("{op: einsum}", "weight: h", "dora, r: 2"))
    with pytest.raises(utc.UtcError, match="a ssf tuner computes with real numbers, and the value is complex64"):
        utc.match(captured, text % ("{op: einsum}", "sequential: h", "ssf"))
