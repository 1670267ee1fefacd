"""Half precision: what rounding would eat is kept, or goes into layers that compute in float32."""

from __future__ import annotations

import pytest
import torch
from support import models as zoo
from torch import nn

import utcompile as utc

LORA = "version: 1\nname: t\nrules:\n  - name: w\n    match: {op: %s}\n    insert: {weight: h, tuner: {kind: lora, r: 2}}\n"
HALF = (torch.bfloat16, torch.float16)


def shaken(model: nn.Module, rules: str, x: torch.Tensor, std: float) -> utc.TunedModule:
    tuned = utc.compile(model.eval(), rules, x)
    generator = torch.Generator().manual_seed(1)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.add_(std * torch.randn(parameter.shape, generator=generator))
    return tuned.eval()


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


class Layers(nn.Module):
    """A convolution and a linear, each with a weight far larger than its update."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), nn.Linear(8, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).relu().flatten(2).transpose(1, 2))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("op", ["conv2d", "linear"])
def test_a_small_update_is_kept_or_computed_in_float32(dtype: torch.dtype, op: str) -> None:
    torch.manual_seed(0)
    model, x = Layers(), torch.randn(2, 4, 6, 6)
    tuned = shaken(model, LORA % op, x, 1e-5).to(dtype)
    folded, report = utc.fold(tuned)
    assert [s.status for s in report.sites] == ["kept"] and "of the tuner's effect" in report.sites[0].reason
    assert report.sites[0].retained < 0.95
    assert torch.equal(folded(x.to(dtype)), tuned(x.to(dtype)))

    folded, report = utc.fold(tuned, strict=True, float32=True)
    (site,) = report.sites
    assert site.status == "absorbed" and site.retained > 0.999 and site.reason.startswith("in float32: rounding")
    path = "conv" if op == "conv2d" else "fc"
    assert folded.get_submodule(path).weight.dtype == torch.float32
    others = [p.dtype for n, p in folded.named_parameters() if not n.startswith(path)]
    assert set(others) == {dtype} and folded(x.to(dtype)).dtype == dtype
    assert any(f"{path}.weight is float32 instead of" in r for r in report.renamed) and not report.is_original
    # nearer to the exact tuned model than half precision itself is
    exact = utc.fold(tuned.double())[0](x.double())
    assert error(folded(x.to(dtype)), exact) < 4 * torch.finfo(dtype).eps
    assert folded.float()(x).dtype == torch.float32  # the casts follow the inputs


@pytest.mark.parametrize("dtype", HALF)
def test_a_large_update_is_absorbed_as_it_is(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tuned = shaken(Layers(), LORA % "linear", torch.randn(2, 4, 6, 6), 1.0).to(dtype)
    folded, report = utc.fold(tuned, strict=True, float32=True)
    assert report.sites[0].retained > 0.99 and report.sites[0].reason == "" and report.is_original
    assert {p.dtype for p in folded.parameters()} == {dtype}


SEQUENTIAL = """
version: 1
name: t
rules:
  - name: s
    match: {op: linear}
    insert: {sequential: h, tuner: {kind: ssf}}
    select: {first: 1}
"""


@pytest.mark.parametrize("dtype", HALF)
def test_a_tuner_of_values_is_measured_by_its_effect(dtype: torch.dtype) -> None:
    """SSF that shifts by a thousandth what a bias of 8 has shifted already: half precision has no number between."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)), torch.randn(4, 32)
    nn.init.constant_(model[0].bias, 8.0)
    for size, status in ((1e-3, "kept"), (3.0, "absorbed")):
        tuned = shaken(model, SEQUENTIAL, x, 0.0).to(dtype)
        first = dict(tuned.tuner("s/0/0").named_parameters())
        with torch.no_grad():
            first["beta"].fill_(size)
        _, report = utc.fold(tuned)
        assert report.sites[0].status == status, report
        if status == "kept":
            assert "of the tuner's effect" in report.sites[0].reason
            folded, report = utc.fold(tuned, float32=True, strict=True)
            assert report.sites[0].retained > 0.99 and report.sites[0].reason.startswith("in float32")
            assert folded.get_submodule("0").weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", HALF)
def test_a_widened_model_in_half(dtype: torch.dtype) -> None:
    model, x = zoo.make("vit")
    tuned = utc.compile(model, "u_tuning/dual_foldable", x)
    zoo.shake(tuned)
    tuned = tuned.to(dtype).eval()
    folded, report = utc.fold(tuned, float32=True)
    assert {s.status for s in report.sites} == {"absorbed", "widened"}
    assert all(s.max_error < 1e-12 and s.retained > 0.95 for s in report.sites), report
    assert all(s.dtype_error is not None and s.dtype_error < 0.02 for s in report.sites)
    with torch.no_grad():
        assert error(folded(x.to(dtype)), tuned(x.to(dtype))) < 0.05
