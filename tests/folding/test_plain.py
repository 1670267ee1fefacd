"""The folded module is plain: the original classes and names, and nothing that only the tuners needed."""

from __future__ import annotations

import pytest
import torch
from support import models as zoo
from torch import nn

import utcompile as utc

RULES = "version: 1\nname: t\nrules:\n  - name: w\n    match: {op: %s}\n    insert: {%s, tuner: {kind: %s}}\n"


_REDUCTIONS = tuple(f"layers.{i}.downsample.reduction.bias is new" for i in (1, 2, 3))


@pytest.mark.parametrize(
    ("kind", "rules", "renamed"),
    [
        ("resnet", "lora/all_conv", ()),
        ("vit", "lora/all_linear", ()),
        ("resnet", "ssf/all_layers", ()),  # shifts of convolutions without a bias move on to their BatchNorms
        pytest.param("efficientnet", "ssf/all_layers", (), marks=pytest.mark.full),
        ("swin", "ssf/all_layers", _REDUCTIONS),  # linears without a bias; the stream reads them, and LayerNorm
    ],
)
def test_what_is_absorbed_loads_into_the_original_architecture(kind: str, rules: str, renamed: tuple[str, ...]) -> None:
    model, tuned, x = zoo.compiled(kind, rules)
    zoo.shake(tuned)
    folded, report = utc.fold(tuned, strict=True)
    assert report.renamed == renamed
    again, _ = zoo.make(kind)
    if report.is_original:
        assert str(again.load_state_dict(folded.state_dict(), strict=True)) == "<All keys matched successfully>"
        with torch.no_grad():
            torch.testing.assert_close(again(x), tuned.eval()(x), rtol=1e-4, atol=1e-5)
    else:
        with pytest.raises(RuntimeError, match=renamed[0].split()[0]):
            again.load_state_dict(folded.state_dict(), strict=True)
    kinds = {n: type(m) for n, m in model.named_modules() if type(m).__module__.startswith("torch.nn.modules")}
    layers = [n for n, m in folded.named_modules() if n in kinds and m._parameters]
    assert layers and all(type(folded.get_submodule(n)) is kinds[n] for n in layers)


def test_buffers_are_the_models_own() -> None:
    model, x = zoo.make("resnet")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.fill_(41)
            nn.init.uniform_(module.running_var, 0.5, 2)
    tuned = utc.compile(model, "lora/all_conv", x)
    folded, _ = utc.fold(tuned)
    state = folded.state_dict()
    for name, buffer in model.named_buffers():
        assert torch.equal(state[name], buffer) and state[name].dtype == buffer.dtype


def test_a_bias_that_no_layer_had_is_told() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU()).eval(), torch.randn(2, 4)
    tuned = utc.compile(model, RULES % ("linear", "weight: h", "ssf"), x)
    zoo.shake(tuned, 0.5)
    folded, report = utc.fold(tuned, strict=True)
    assert report.renamed == ("0.bias is new",) and not report.is_original
    torch.testing.assert_close(folded(x), tuned.eval()(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "0\.bias"'):
        nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU()).load_state_dict(folded.state_dict())


def test_an_added_bias_moves_to_the_batch_norm_behind_unless_something_else_sees_it() -> None:
    class Net(nn.Module):
        def __init__(self, twice: bool) -> None:
            super().__init__()
            self.conv, self.norm, self.twice = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), twice

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.conv(x)
            return self.norm(h) + h if self.twice else self.norm(h)

    for twice, renamed in ((False, ()), (True, ("conv.bias is new",))):
        model, x = Net(twice).eval(), torch.randn(2, 3, 6, 6)
        tuned = utc.compile(model, RULES % ("conv", "weight: h", "ssf"), x)
        zoo.shake(tuned, 0.5)
        folded, report = utc.fold(tuned, strict=True)
        assert report.renamed == renamed
        torch.testing.assert_close(folded(x), tuned.eval()(x), rtol=1e-5, atol=1e-5)


def test_a_trained_head_is_part_of_it() -> None:
    model, tuned, _x = zoo.compiled("vit", "u_tuning/dual_foldable")
    assert tuned.trained
    zoo.shake(tuned)
    folded, report = utc.fold(tuned)
    assert not any(n.startswith(("base_values", "tuners")) for n in folded.state_dict())
    assert all(torch.equal(folded.state_dict()[n], tuned.state_dict()[n]) for n in tuned.trained)
    assert not torch.equal(folded.state_dict()[tuned.trained[0]], model.state_dict()[tuned.trained[0]])
    assert not report.is_original and "blocks.0.mlp.fc1.weight is [202, 64] instead of [192, 64]" in report.renamed


def test_a_widening_leaves_no_batch_norm_that_nothing_reads() -> None:
    _model, tuned, _x = zoo.compiled("efficientnet", "convnet/inverted_residual_foldable")
    folded, report = utc.fold(tuned, strict=True)
    wide = [s.path for s in tuned.sites if {r.id: r.status for r in report.sites}[s.id] == "widened"]
    assert wide and all(f"{path}.bn1.running_mean" not in folded.state_dict() for path in wide)
    assert f"{wide[0]}.bn1.running_mean is gone" in report.renamed
