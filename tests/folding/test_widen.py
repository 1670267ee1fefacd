"""Tuners parallel to chains of frozen layers of every make: widened and equal in float64, or kept with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import models as zoo
from support.draws import examples
from torch import nn

import utcompile as utc
from utcompile.folding.algebra.activations import combination, composed

RULE = """
version: 1
name: t
rules:
  - name: t
    match: {{module: block}}
    insert: {{parallel: x -> y, tuner: {tuner}}}
"""
TOLERANCE = 1e-12  # float64, some layers


class Whole(nn.Module):
    """A stem, so that channels are known, and the block parallel to the tuner."""

    def __init__(self, stem: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.stem, self.block = stem, block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.block(self.stem(x)))


def check(layers: dict[str, Any], forward: Callable[..., torch.Tensor], tuner: str, image: bool) -> tuple[str, str]:
    """Status and reason of a tuner parallel to a block; that outputs agree in float64 is checked on the way."""
    torch.manual_seed(0)
    model = Whole(nn.Conv2d(3, 4, 1) if image else nn.Linear(3, 4), zoo.Layers(forward, layers)).eval()
    zoo.draw_norms(model)
    x = torch.randn((2, 3, 8, 8) if image else (2, 9, 3))
    tuned = utc.compile(model, RULE.format(tuner=tuner), x)
    zoo.shake(tuned, 0.3)
    tuned.double().eval()
    folded, report = utc.fold(tuned)
    with torch.no_grad():
        for y in (x.double(), torch.randn(3, *x.shape[1:]).double()):
            expected = tuned(y)
            assert ((folded(y) - expected).abs().max() / expected.abs().max()).item() < TOLERANCE, report
            with utc.disable_tuners(tuned):
                assert not torch.allclose(tuned(y), expected), "the tuner does nothing"
    (site,) = report.sites
    assert (site.status == "kept") == any("tuner" in str(n.target) for n in folded.graph.nodes)
    return site.status, site.reason


def adapter(activation: str, **more: object) -> str:
    return f"{{kind: adapter, dim: 3, activation: {activation}" + "".join(f", {k}: {v}" for k, v in more.items()) + "}"


REP = "{kind: rep_adapter, dim: 2, groups: 1}"


def conv(i: int, o: int, k: int = 1, **kw: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, **kw)


def squeeze(gate: nn.Module, width: int = 6) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(width, 2), nn.ReLU(), conv(2, width), gate)


def ffn(act: nn.Module) -> dict[str, nn.Module]:
    return {"f": nn.Linear(4, 6), "a": act, "g": nn.Linear(6, 4)}


def inverted(before: nn.Module, after: nn.Module, kernel: int = 3, **kw: Any) -> dict[str, nn.Module]:
    kw = {"padding": kernel // 2, "groups": 6} | kw
    return {"p": conv(4, 6), "b": nn.BatchNorm2d(6), "a": before, "d": conv(6, 6, kernel, **kw), "c": after, "q": conv(6, 4, bias=False), "n": nn.BatchNorm2d(4)}  # fmt: skip


def mix(m: Any, x: torch.Tensor) -> torch.Tensor:
    """Mix-FFN (SegFormer, PVTv2): a depthwise convolution before the activation, on tokens."""
    h = m.p(x)
    b, _, c = h.shape
    h = m.d(h.transpose(1, 2).view(b, c, 3, 3)).flatten(2).transpose(1, 2)
    return m.q(m.a(h))


def plain(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.g(m.a(m.f(x)))


def residual(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.n(m.q(m.c(m.d(m.a(m.b(m.p(x)))))))


def excited(m: Any, x: torch.Tensor) -> torch.Tensor:
    h = m.c(m.d(m.a(m.b(m.p(x)))))
    return m.n(m.q(h * m.s(h)))


def same_padding(m: Any, x: torch.Tensor) -> torch.Tensor:
    """TensorFlow's: more zeros on the right."""
    return m.n(m.q(m.c(m.d(F.pad(m.a(m.b(m.p(x))), (0, 1, 0, 1))))))


WIDENED = {
    "a linear tuner parallel to GELU": (ffn(nn.GELU()), plain, REP, False),
    "a linear tuner parallel to GELU's tanh": (ffn(nn.GELU("tanh")), plain, REP, False),
    "a linear tuner parallel to SiLU": (ffn(nn.SiLU()), plain, REP, False),
    "a linear tuner parallel to Hardswish": (ffn(nn.Hardswish()), plain, REP, False),
    "a linear tuner parallel to ReLU": (ffn(nn.ReLU()), plain, REP, False),
    "a linear tuner parallel to LeakyReLU": (ffn(nn.LeakyReLU(0.2)), plain, REP, False),
    "ReLU parallel to LeakyReLU": (ffn(nn.LeakyReLU(0.2)), plain, adapter("relu"), False),
    "LeakyReLU parallel to ReLU": (ffn(nn.ReLU()), plain, adapter("leaky_relu"), False),
    "two linears with nothing between": ({"f": nn.Linear(4, 6), "g": nn.Linear(6, 4)}, lambda m, x: m.g(m.f(x)), REP, False),
    "a packed gated ffn, activated first": ({"f": nn.Linear(4, 12), "a": nn.SiLU(), "g": nn.Linear(6, 4)},
        lambda m, x: (lambda u, v: m.g(m.a(u) * v))(*m.f(x).chunk(2, -1)), adapter("silu"), False),
    "a packed gated ffn, activated last": ({"f": nn.Linear(4, 12), "a": nn.SiLU(), "g": nn.Linear(6, 4)},
        lambda m, x: (lambda u, v: m.g(u * m.a(v)))(*m.f(x).chunk(2, -1)), adapter("silu", scale="channel"), False),
    "behind a BatchNorm that the tuner does not read": ({"n": nn.BatchNorm2d(4), "f": conv(4, 6), "a": nn.GELU(), "g": conv(6, 4)},
        lambda m, x: m.g(m.a(m.f(m.n(x)))), adapter("gelu"), True),
    "Mix-FFN": ({"p": nn.Linear(4, 6), "d": conv(6, 6, 3, padding=1, groups=6), "a": nn.GELU(), "q": nn.Linear(6, 4)}, mix, adapter("gelu"), False),
    "an inverted residual": (inverted(nn.ReLU6(), nn.ReLU6()), residual, adapter("relu6"), True),
    "one that strides": (inverted(nn.ReLU6(), nn.ReLU6(), stride=2), residual, adapter("relu6"), True),
    "a large one that strides": (inverted(nn.ReLU(), nn.ReLU(), 5, stride=2), residual, adapter("relu"), True),
    "one with dilation": (inverted(nn.ReLU(), nn.ReLU(), 3, padding=2, dilation=2), residual, adapter("relu"), True),
    "one padded on the right": (inverted(nn.ReLU(), nn.ReLU(), 3, padding=0, stride=2), lambda m, x: same_padding(m, x), adapter("relu"), True),
    "one without its second activation": (inverted(nn.SiLU(), nn.Identity()), residual, adapter("silu"), True),
    "one without its first activation": (inverted(nn.Identity(), nn.Hardswish()), residual, adapter("hardswish"), True),
    "ReLU, then ReLU6": (inverted(nn.ReLU(), nn.ReLU6()), residual, adapter("relu6"), True),
    "sigmoid, then ReLU": (inverted(nn.Sigmoid(), nn.ReLU()), residual, adapter("sigmoid"), True),
    "a squeeze-excite": (inverted(nn.ReLU(), nn.ReLU()) | {"s": squeeze(nn.Sigmoid())}, excited, adapter("relu"), True),
    "a hard squeeze-excite": (inverted(nn.ReLU(), nn.ReLU()) | {"s": squeeze(nn.Hardsigmoid())}, excited, adapter("relu"), True),
    "functions of one module, next to a parameter called bias": ({"w": nn.Parameter(torch.randn(6, 4)), "v": nn.Parameter(torch.randn(4, 6)), "bias": nn.Parameter(torch.randn(4))},
        lambda m, x: F.linear(F.gelu(F.linear(x, m.w)), m.v) * m.bias, adapter("gelu"), False),
    "a linear tuner parallel to an inverted residual": (inverted(nn.ReLU(), nn.ReLU()), residual, REP, True),
}  # fmt: skip

SPELLED = {"w": nn.Parameter(torch.randn(4, 6)), "v": nn.Parameter(torch.randn(6, 4)), "b": nn.Parameter(torch.randn(6)), "c": nn.Parameter(torch.randn(4))}  # fmt: skip
KEPT = {
    "products with weights whose outputs are last": (SPELLED, lambda m, x: F.gelu(x @ m.w) @ m.v, adapter("gelu"), False, "has no weight with its outputs first"),
    "the same as methods": (SPELLED, lambda m, x: F.gelu(x.matmul(m.w)).matmul(m.v), adapter("gelu"), False, "has no weight with its outputs first"),
    "the same with biases, as GPT-2 has them": (SPELLED, lambda m, x: torch.addmm(m.c, F.gelu(torch.addmm(m.b, x.flatten(0, 1), m.w)), m.v).reshape(x.shape), adapter("gelu"), False, "has no weight with its outputs first"),
    "SiLU twice": (inverted(nn.SiLU(), nn.SiLU()), residual, adapter("silu"), True, "silu after silu is not idempotent"),
    "a linear tuner parallel to ReLU6": (ffn(nn.ReLU6()), plain, REP, False, "its activation is identity, that of the layers parallel to it is relu6"),
    "a gate that is never open": (inverted(nn.ReLU(), nn.ReLU()) | {"s": squeeze(nn.Tanh())}, excited, adapter("relu"), True, "which is never 1"),
    "a squeeze-excite over fewer channels": (inverted(nn.ReLU(), nn.ReLU()) | {"s": nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(6, 6, groups=3), nn.Sigmoid())},
        excited, adapter("relu"), True, "of which none is an activation and the other a layer"),
    "several filters a channel": ({"p": conv(4, 6), "b": nn.Identity(), "a": nn.ReLU(), "d": conv(6, 12, 3, padding=1, groups=6), "c": nn.ReLU(), "q": conv(12, 4), "n": nn.Identity()},
        residual, adapter("relu"), True, "several filters a channel"),
    "no tap at its own position": (
        inverted(nn.ReLU(), nn.ReLU(), 3, padding=0, stride=2, dilation=2),
        lambda m, x: m.n(m.q(m.c(m.d(F.pad(m.a(m.b(m.p(x))), (1, 2, 1, 2)))))), adapter("relu"), True, "no tap of conv2d"),
    "a hidden value that is read twice": (ffn(nn.GELU()), lambda m, x: (lambda h: m.g(h) + h.sum(-1, keepdim=True))(m.a(m.f(x))), adapter("gelu"), False, "add (block_add) is on the way"),
    "a norm of the hidden layer": (ffn(nn.GELU()) | {"n": nn.LayerNorm(6)}, lambda m, x: m.g(m.n(m.a(m.f(x)))), adapter("gelu"), False, "layer_norm"),
    "GRN of the hidden layer": (ffn(nn.GELU()), lambda m, x: (lambda h: m.g(h * (h.norm(dim=1, keepdim=True) + 1)))(m.a(m.f(x))), adapter("gelu"), False, "none is an activation"),
    "a pixel shift between": (inverted(nn.ReLU(), nn.ReLU()), lambda m, x: m.n(m.q(m.c(m.d(m.a(m.b(m.p(x)))).roll(1, 2)))), adapter("relu"), True, "roll"),
    "a BatchNorm that something else reads too": ({"n": nn.BatchNorm2d(4), "f": conv(4, 6), "a": nn.GELU(), "g": conv(6, 4)},
        lambda m, x: (lambda n: m.g(m.a(m.f(n))) + n)(m.n(x)), adapter("gelu"), True, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", WIDENED)
def test_widened(name: str) -> None:
    status, reason = check(*WIDENED[name])
    assert status == "widened", reason


@pytest.mark.parametrize("name", KEPT)
def test_kept_with_its_reason(name: str) -> None:
    *case, expected = KEPT[name]
    status, reason = check(*case)  # type: ignore[arg-type]
    assert status == "kept" and expected in reason, (status, reason)


FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda z: z, "relu": F.relu, "relu6": F.relu6, "gelu": F.gelu, "silu": F.silu, "hardswish": F.hardswish,
    "leaky_relu": lambda z: F.leaky_relu(z, 0.2), "sigmoid": torch.sigmoid, "elu": F.elu, "hardsigmoid": F.hardsigmoid,
    "softplus": F.softplus, "mish": F.mish, "tanh": torch.tanh,
}  # fmt: skip
NAMES = st.sampled_from(sorted(FUNCTIONS))


def named(name: str) -> tuple[str, dict[str, Any]]:
    return name, {"negative_slope": 0.2} if name == "leaky_relu" else {}


@settings(max_examples=examples(40, full=200), deadline=None)
@given(mine=NAMES, theirs=NAMES, seed=st.integers(0, 99))
def test_what_activations_are_said_to_make_of_one_another_holds(mine: str, theirs: str, seed: int) -> None:
    z = 8 * torch.randn(200, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    f, g = FUNCTIONS[mine], FUNCTIONS[theirs]
    try:
        alpha, beta = combination(named(mine), named(theirs))
        torch.testing.assert_close(f(z), alpha * g(z) + beta * g(-z), rtol=1e-12, atol=1e-12)
    except Exception as error:
        assert type(error).__name__ == "Unfoldable", error
    try:
        both = composed(named(mine), named(theirs))
    except Exception as error:
        assert type(error).__name__ == "Unfoldable", error
        return
    torch.testing.assert_close(g(f(z)), FUNCTIONS[both[0]](z), rtol=1e-12, atol=1e-12)
