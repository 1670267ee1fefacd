"""Learned tokens become constants; on request, so does what the base computes from parameters alone, and BatchNorms go."""

from __future__ import annotations

import pytest
import torch
from support import models as zoo
from torch import nn

import utcompile as utc
from utcompile.graph import info

TOKENS = """
version: 1
name: t
rules:
  - name: a
    match: attention
    insert: {tokens: [k, v], tuner: {kind: %s, length: 3}}
"""


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("kind", ["vit", "swin"])
@pytest.mark.parametrize("tuner", ["prefix", "prompt"])
def test_tokens_become_constants(kind: str, tuner: str) -> None:
    model, tuned, x = zoo.compiled(kind, TOKENS % tuner)
    zoo.shake(tuned, 0.3)
    tuned.double().eval()
    folded, report = utc.fold(tuned, strict=True)
    assert {s.status for s in report.sites} == {"constant"} and all(s.max_error < 1e-12 for s in report.sites)
    assert "tuners" not in folded._modules
    for batch in (1, 3):
        y = torch.randn(batch, *x.shape[1:]).double()
        with torch.no_grad():
            assert relative(folded(y), tuned(y)) < 1e-12
    made = [n for n, _ in folded.named_buffers() if n.endswith((f"{tuner}_keys", f"{tuner}_values"))]
    assert len(made) == 2 * len(report.sites) and set(made) <= folded.state_dict().keys()
    names = {n for n, _ in folded.named_parameters()}
    assert names == {n for n, _ in model.named_parameters()}
    # the frozen projections run once: on the image's tokens, and no more on the prompts
    assert not any(info(n).role in ("tuner", "projection") for n in folded.graph.nodes)
    if tuner == "prompt":
        assert all(s.parameters[0] > s.parameters[1] == 0 and s.flops[0] > s.flops[1] == 0 for s in report.sites)  # type: ignore[index]


class Standardised(nn.Conv2d):
    """Weight standardisation: the weight is computed in each call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return nn.functional.conv2d(x, w, self.bias)


class Frozen(nn.Module):
    """A computed weight, a table that is gathered, a view that costs nothing, and noise, which is no constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = Standardised(3, 4, 1), nn.Linear(4, 4)
        self.table = nn.Parameter(torch.randn(9, 4))
        self.register_buffer("index", torch.arange(4) * 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv(x).flatten(2).transpose(1, 2) + self.table[self.index]
        return h @ self.fc.weight.t() + self.fc.bias


LORA = "version: 1\nname: t\nrules:\n  - name: w\n    match: {op: conv2d}\n    insert: {weight: h, tuner: {kind: lora, r: 1}}\n"


def test_constants_of_the_base_on_request() -> None:
    captured = utc.capture(Frozen().eval(), torch.randn(2, 3, 2, 2))
    plain, report = utc.fold(captured)
    assert report.base == () and str(plain.graph) == str(captured.graph)
    folded, report = utc.fold(captured, constants=True)
    assert [(s.id, s.status) for s in report.base] == [
        ("conv.weight_constant", "constant"),
        ("table_constant", "constant"),
    ]
    assert set(folded.state_dict()) == {"conv.weight_constant", "table_constant", "conv.bias", "fc.weight", "fc.bias"}
    assert "conv.weight is gone" in report.renamed and "table_constant is new" in report.renamed
    x = torch.randn(5, 3, 2, 2)
    torch.testing.assert_close(folded(x), captured(x), rtol=1e-5, atol=1e-5)
    assert len(folded.graph.nodes) < len(captured.graph.nodes) - 5


def test_what_a_kept_tuner_changes_is_no_constant() -> None:
    model = nn.Sequential(Standardised(3, 4, 1)).eval()
    tuned = utc.compile(model, LORA, torch.randn(2, 3, 2, 2))
    zoo.shake(tuned, 0.5)
    folded, report = utc.fold(tuned, constants=True, strict=True)  # the tuner first, then what is left of it
    assert [s.status for s in (*report.sites, *report.base)] == ["absorbed", "constant"]
    x = torch.randn(2, 3, 2, 2)
    torch.testing.assert_close(folded(x), tuned.eval()(x), rtol=1e-5, atol=1e-5)


def test_swin_gathers_no_bias_any_more() -> None:
    model, x = zoo.make("swin")
    captured = utc.capture(model, x)
    folded, report = utc.fold(captured, constants=True)
    assert len(report.base) == 5 and all(s.id.endswith("relative_position_bias_table_constant") for s in report.base)
    assert relative(folded(x), captured(x)) < 1e-6


@pytest.mark.parametrize("kind", ["resnet", pytest.param("efficientnet", marks=pytest.mark.full)])
def test_batch_norms_go_on_request(kind: str) -> None:
    model, x = zoo.make(kind)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean, std=0.3)
    tuned = utc.compile(model, "lora/all_conv", x)
    zoo.shake(tuned)
    tuned.double().eval()
    folded, report = utc.fold(tuned, batch_norms=True)
    assert {s.status for s in report.base} == {"absorbed"} and all(s.max_error < 1e-12 for s in report.base)
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert sorted(s.id for s in report.base) == sorted(norms)
    assert not any("running_mean" in n for n in folded.state_dict())
    y = torch.randn(3, *x.shape[1:]).double()
    with torch.no_grad():
        assert relative(folded(y), tuned(y)) < 1e-12


class TwoReaders(nn.Module):
    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.conv, self.bn, self.shared = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), shared

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv(x)
        return self.bn(h) + (self.conv(h) if self.shared else h)


@pytest.mark.parametrize("shared", [True, False])
def test_a_batch_norm_stays_where_more_than_it_reads_the_convolution(shared: bool) -> None:
    model, x = TwoReaders(shared).eval(), torch.randn(2, 3, 4, 4)
    folded, report = utc.fold(utc.capture(model, x), batch_norms=True)
    assert [s.status for s in report.base] == ["kept"] and "is read in 2 places" in report.base[0].reason
    assert torch.equal(folded(x), model(x))
