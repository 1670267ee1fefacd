"""Each tuner: its formula, its shapes, its identity at the start, its parameter count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import utcompile as utc
from utcompile.graph import Operation, Value
from utcompile.tuners import (
    Adapter,
    AdapterConfig,
    Lora,
    LoraConfig,
    Port,
    Prefix,
    PrefixConfig,
    TunerSite,
    ValueSite,
    WeightSite,
    config_for,
    tuner_kinds,
)

torch.manual_seed(0)


def port(shape: tuple[int, ...], axis: int | None, name: str = "x") -> Port:
    return Port(Value(shape, torch.float32, torch.device("cpu"), 0), axis, name)


def site(source: Port, target: Port | None = None, replaces: bool = False, **kwargs: Any) -> ValueSite:
    return ValueSite(source=source, target=target or source, replaces=replaces, **kwargs)


def weight_site(port: Port, operation: Operation, shape: tuple[int, ...] = ()) -> WeightSite:
    return WeightSite(source=port, target=port, operation=operation, weight_shape=shape)


TOKENS, MAPS = port((2, 5, 8), 2), port((2, 8, 6, 6), 1)


@pytest.mark.parametrize("scale", ["none", "scalar", "channel", "input"])
@pytest.mark.parametrize("where", [TOKENS, MAPS])
def test_an_adapter_is_the_formula(scale: str, where: Port) -> None:
    tuner = Adapter.build(AdapterConfig(dim=3, activation="gelu", scale=scale), site(where))  # type: ignore[arg-type]
    x = torch.randn(2, *where.value.sizes(2)[1:])
    assert torch.equal(tuner(x), torch.zeros_like(x))  # the identity, beside an operation
    for p in tuner.parameters():
        nn.init.normal_(p)
    tokens = x if where is TOKENS else x.permute(0, 2, 3, 1)
    down, up = tuner.down.weight.flatten(1), tuner.up.weight.flatten(1)
    expected = F.gelu(tokens @ down.T + tuner.down.bias) @ up.T + tuner.up.bias
    if tuner.scale is not None:
        expected = expected * tuner.scale
    if tuner.gate is not None:
        gate = torch.sigmoid(tokens @ tuner.gate.weight.T + tuner.gate.bias).flatten(1).mean(1)
        expected = expected * gate.reshape(-1, *[1] * (tokens.dim() - 1))
    expected = expected if where is TOKENS else expected.permute(0, 3, 1, 2)
    torch.testing.assert_close(tuner(x), expected, rtol=1e-4, atol=1e-5)  # float32 sums of a few terms
    extra = {"none": 0, "scalar": 1, "channel": 8, "input": 9}[scale]
    assert sum(p.numel() for p in tuner.parameters()) == 8 * 3 + 3 + 3 * 8 + 8 + extra


def test_an_adapter_follows_channels_stride_and_layout() -> None:
    strided = Adapter.build(AdapterConfig(dim=2), site(MAPS, port((2, 16, 3, 3), 1, "y")))
    assert strided(torch.randn(2, 8, 6, 6)).shape == (2, 16, 3, 3)
    moved = Adapter.build(AdapterConfig(dim=2), site(port((2, 6, 6, 8), 3), port((2, 8, 6, 6), 1, "y")))
    assert moved(torch.randn(2, 6, 6, 8)).shape == (2, 8, 6, 6)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (port((2, 5, 8), None), TOKENS, "the channel axis of 'x' .* is unknown"),
        (TOKENS, port((2, 6, 8), 2, "y"), "only the channels may differ"),
        (port((2, 3, 8, 5), 2), port((2, 3, 8, 5), 2, "y"), "its channels are axis 2"),
    ],
)
def test_an_adapter_says_why_it_does_not_fit(source: Port, target: Port, message: str) -> None:
    with pytest.raises(utc.UtcError, match=message):
        Adapter.build(AdapterConfig(), site(source, target))


def test_a_sequential_adapter_starts_as_the_identity() -> None:
    tuner = Adapter.build(AdapterConfig(), site(TOKENS, replaces=True))
    x = torch.randn(2, 5, 8)
    assert torch.equal(tuner(x), x)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("scale", ["none", "channel"])
def test_a_prefix_is_attention_to_learned_tokens(heads: int, scale: str) -> None:
    tuner = Prefix.build(PrefixConfig(length=4, heads=heads, scale=scale), site(TOKENS))  # type: ignore[arg-type]
    x = torch.randn(2, 5, 8)
    assert torch.equal(tuner(x), torch.zeros_like(x))
    for p in tuner.parameters():
        nn.init.normal_(p)
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(-2, -3) for t in (x, tuner.keys, tuner.values))
    expected = F.scaled_dot_product_attention(q, k.expand(2, -1, -1, -1), v.expand(2, -1, -1, -1))
    expected = expected.transpose(1, 2).flatten(2) * (1 if tuner.scale is None else tuner.scale)
    torch.testing.assert_close(tuner(x), expected, rtol=1e-4, atol=1e-5)


def test_a_prefix_on_a_feature_map_reads_its_channels() -> None:
    tuner = Prefix.build(PrefixConfig(length=4), site(MAPS))
    nn.init.normal_(tuner.values)
    x = torch.randn(2, 8, 6, 6)
    tokens = Prefix.build(PrefixConfig(length=4), site(port((2, 36, 8), 2)))
    tokens.load_state_dict(tuner.state_dict())
    torch.testing.assert_close(tuner(x).flatten(2).mT, tokens(x.flatten(2).mT))
    with pytest.raises(utc.UtcError, match="heads: 3 does not divide the 8 channels"):
        Prefix.build(PrefixConfig(heads=3), site(TOKENS))


CONVOLUTIONS = {
    "linear": nn.Linear(8, 6),
    "1x1": nn.Conv2d(8, 6, 1),
    "3x3 strided": nn.Conv2d(8, 6, 3, stride=2, padding=1),
    "dilated": nn.Conv2d(8, 6, 3, dilation=2, padding=2),
    "reflect": nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"),
    "circular": nn.Conv2d(8, 6, (3, 1), padding=(1, 0), padding_mode="circular"),
    "same": nn.Conv2d(8, 6, (3, 2), padding="same", dilation=2),
    "same reflect": nn.Conv2d(8, 6, (3, 2), padding="same", padding_mode="reflect"),
    "grouped": nn.Conv2d(8, 6, 3, groups=2),
    "depthwise": nn.Conv2d(8, 8, 3, groups=8, padding=1),
    "depthwise reflect": nn.Conv2d(8, 8, 3, groups=8, padding=1, padding_mode="reflect"),
    "1d": nn.Conv1d(8, 6, 3, padding=1),
    "3d": nn.Conv3d(8, 6, 3),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_lora_is_the_layer_with_another_weight(name: str) -> None:
    """Through compile: as a branch or reparametrised, equal to the layer run with W + s·BA; and absorbed to that."""
    layer = CONVOLUTIONS[name]
    shape = {"linear": (2, 5, 8), "1d": (2, 8, 9), "3d": (2, 8, 5, 5, 5)}.get(name, (2, 8, 9, 9))
    x = torch.randn(shape)
    model = nn.Sequential(layer).eval()
    rules = "version: 1\nname: t\nrules:\n  - name: w\n    match: {op: linear | conv}\n    insert: {weight: h, tuner: {kind: lora, r: 2, alpha: 6}}\n"
    tuned = utc.compile(model, rules, (x,))
    tuner = tuned.tuner("w/0/0")
    assert isinstance(tuner, Lora)
    nn.init.normal_(tuner.lora_B)
    changed = nn.Sequential(layer)
    delta = 3 * (tuner.lora_B @ tuner.lora_A.flatten(1)).reshape(layer.weight.shape)
    with torch.no_grad():
        expected = torch.func.functional_call(changed, {"0.weight": layer.weight + delta}, (x,))
        torch.testing.assert_close(tuned(x), expected, rtol=1e-4, atol=1e-4)  # float32 sums of up to 216 terms
        folded, report = utc.fold(tuned)
        torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-4)
    assert [s.status for s in report.sites] == ["absorbed"] and report.sites[0].max_error < 1e-13
    assert (
        isinstance(folded.get_submodule("0"), type(layer)) and folded.state_dict().keys() == model.state_dict().keys()
    )


def test_lora_refuses_what_has_no_weight_to_share() -> None:
    pool = Operation("pool")
    with pytest.raises(utc.UtcError, match="LoRA does not apply to pool"):
        Lora.build(LoraConfig(), weight_site(TOKENS, pool))
    grouped = Operation("conv2d", (), {"groups": 2})
    with pytest.raises(utc.UtcError, match="LoRA with dropout does not apply here: the convolution is grouped"):
        Lora.build(LoraConfig(dropout=0.1), weight_site(MAPS, grouped, (6, 4, 3, 3)))


def test_lora_dropout_acts_in_training_alone() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(4, 8)
    rules = "version: 1\nname: t\nrules:\n  - name: w\n    match: {op: linear}\n    insert: {weight: h, tuner: {kind: lora, dropout: 0.5}}\n"
    tuned = utc.compile(model, rules, (x,))
    nn.init.normal_(tuned.tuner("w/0/0").lora_B)  # type: ignore[arg-type]
    assert not torch.equal(tuned.train()(x), tuned(x))
    assert torch.equal(tuned.eval()(x), tuned(x))


def test_activation_of_a_captured_operation() -> None:
    captures = {"a": Operation("leaky_relu", (), {"negative_slope": 0.3}), "h": Operation("linear")}
    tuner = Adapter.build(AdapterConfig(activation="same as a"), site(TOKENS, captures=captures))
    assert isinstance(tuner.activation, nn.LeakyReLU) and tuner.activation.negative_slope == 0.3
    for text, message in (("same as h", "is the result of linear"), ("same as z", "the match offers no capture 'z'")):
        with pytest.raises(utc.UtcError, match=message):
            Adapter.build(AdapterConfig(activation=text), site(TOKENS, captures=captures))


def test_a_registered_tuner_is_known_to_rules() -> None:
    class GainConfig(config_for("adapter").__bases__[0]):  # type: ignore[misc]
        kind: str = "test_gain"

    class Gain(Adapter.__mro__[1]):  # type: ignore[name-defined,misc]
        config_class = GainConfig
        forms = ("sequential",)

        def __init__(self, channels: int) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.zeros(channels))

        @classmethod
        def build(cls, config: object, site: TunerSite) -> Gain:
            return cls(site.source.channels)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (1 + self.gain)

    utc.register_tuner("test_gain")(Gain)
    assert "test_gain" in tuner_kinds()
    rules = "version: 1\nname: t\nrules:\n  - name: g\n    match: {op: linear}\n    insert: {sequential: h, tuner: {kind: test_gain}}\n"
    tuned = utc.compile(nn.Sequential(nn.Linear(4, 3)), rules, (torch.randn(2, 4),))
    assert tuned.trainable_parameters() == (3, 18)
    _, report = utc.fold(tuned)
    assert report.sites[0].status == "kept" and "no exact fold is known" in report.sites[0].reason
    with pytest.raises(utc.UtcError, match="'adapter' is registered already"):
        utc.register_tuner("adapter")(Gain)
