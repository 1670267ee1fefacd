"""Every family of tuners on values: its formula, and on real models its start, its gradients, a step, a file, ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import models as zoo
from torch import nn

import utcompile as utc
from utcompile.graph import Value
from utcompile.tuners import (
    Adapter,
    AdapterConfig,
    Bypass,
    BypassConfig,
    ChainSite,
    ConvAdapter,
    ConvAdapterConfig,
    Port,
    Prefix,
    PrefixConfig,
    Prompt,
    PromptConfig,
    ValueSite,
)

TOKENS = (2, 5, 8)


def port(shape: tuple[int, ...], axis: int | None, name: str = "x", grid: tuple[int, int] | None = None) -> Port:
    return Port(Value(shape, torch.float32, torch.device("cpu"), 0), axis, name, grid)


def site(source: Port, target: Port | None = None, replaces: bool = False, **kwargs: Any) -> ValueSite:
    return ValueSite(source=source, target=target or source, replaces=replaces, **kwargs)


def shaken(tuner: nn.Module) -> Any:
    for parameter in tuner.parameters():
        nn.init.normal_(parameter, std=0.3)
    return tuner


# --- the matrix: shipped rules on unlike models -------------------------------------------------------------------------

MATRIX = [
    ("vit", "adapter/houlsby"),
    ("convnext", "adapter/adaptformer"),
    ("vit", "prefix/prefix"),
    ("vit", "prompt/vpt_deep"),
    ("resnet", "conv/conv_adapter"),
    ("mixer", "side/lst"),
    pytest.param("resnet", "res_tuning/bypass", marks=pytest.mark.full),  # a chain, as side/lst is
    *(
        pytest.param(kind, rules, marks=pytest.mark.full)
        for kind, rules in (
            ("convnext", "adapter/pfeiffer"),
            ("swin", "adapter/adapter_plus"),
            ("swin", "prefix/prefix"),
            ("vit", "u_tuning/single_mha_prefix"),
            ("convnext", "u_tuning/single_ffn_prefix"),
            ("swin", "prompt/vpt_deep"),
            ("vit", "u_tuning/single_block_prompt"),
            ("swin", "conv/convpass"),
            ("efficientnet", "conv/conv_adapter"),
            ("vit", "conv/mona"),
            ("convnext", "conv/mona"),
            ("vit", "res_tuning/bypass"),
            ("swin", "res_tuning/bypass"),
            ("swin", "side/lst"),
        )
    ),
]


def compiled(kind: str, rules: str) -> tuple[nn.Module, utc.TunedModule, torch.Tensor]:
    text = utc.RuleSet.load(rules).text
    if kind == "mixer":  # it has no named block
        text = text.replace("match: block", "match: ffn")
    return zoo.compiled(kind, text)


@pytest.mark.parametrize(("kind", "rules"), MATRIX)
def test_start_gradients_a_step_and_a_checkpoint(kind: str, rules: str, tmp_path: Path) -> None:
    model, tuned, x = compiled(kind, rules)
    with torch.no_grad():
        start, base = tuned.eval()(x), model(x)
    is_identity = all(tuned.tuner(s.id).identity_at_start for s in tuned.sites)
    assert torch.equal(start, base) == is_identity
    trained = {n: p for n, p in tuned.named_parameters() if p.requires_grad}
    assert all(n.startswith("tuners.") or n in tuned.trained for n in trained)
    frozen = {n: p.detach().clone() for n, p in tuned.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
    seen, losses = set(), []
    tuned.train()
    for _ in range(4):
        loss = F.cross_entropy(tuned(x), torch.arange(2))
        optimizer.zero_grad()
        loss.backward()
        if len(losses) < 2:
            assert all(p.grad is None or p.grad.isfinite().all() for p in trained.values())
            seen |= {n for n, p in trained.items() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert seen == trained.keys(), f"no gradient within two steps: {sorted(trained.keys() - seen)}"
    assert all(torch.equal(p, frozen[n]) and p.grad is None for n, p in tuned.named_parameters() if n in frozen)
    utc.save_tuners(tuned, tmp_path)
    _, other, _ = compiled(kind, rules)
    with torch.no_grad():
        assert torch.equal(utc.load_tuners(other, tmp_path).eval()(x), tuned.eval()(x))
        with utc.disable_tuners(tuned):
            assert torch.equal(tuned(x), base)


ONNX = [
    # test_tokens.py exports tokens that are constants, a prefix's, in every run
    pytest.param("vit", "prompt/vpt_deep", marks=pytest.mark.full),
    ("vit", "conv/mona"),
    ("resnet", "res_tuning/bypass"),
    ("mixer", "side/lst"),
    pytest.param("swin", "conv/mona", marks=pytest.mark.full),
]


@pytest.mark.parametrize(("kind", "rules"), ONNX)
def test_onnx(kind: str, rules: str, tmp_path: Path) -> None:
    if rules == "conv/mona":  # one place of each kind: the others of twelve translate alike
        last = utc.RuleSet.load(rules).text.replace("    insert:", "    select: {last: 1}\n    insert:")
        _, tuned, x = zoo.compiled(kind, last)
    else:
        _, tuned, x = compiled(kind, rules)
    zoo.shake(tuned, 0.05)
    folded, report = utc.fold(tuned)
    assert {s.status for s in report.sites} == {"constant" if rules == "prompt/vpt_deep" else "kept"}
    assert utc.export_onnx(folded, tmp_path / "m.onnx", x).max_error < 1e-3  # proven in ONNX Runtime


# --- adapters -----------------------------------------------------------------------------------------------------------


def test_inits_of_the_papers() -> None:
    wide = site(port((2, 5, 512), 2))
    houlsby = Adapter.build(AdapterConfig(dim=64, init="houlsby"), wide)
    for layer in (houlsby.down, houlsby.up):
        assert layer.bias is not None and not layer.bias.any()
        assert (
            layer.weight.abs().max() <= 0.02 and 0.008 < layer.weight.std() < 0.0095
        )  # N(0, 0.01) cut at two deviations
    xavier = Adapter.build(AdapterConfig(dim=64, init="xavier"), wide)
    bound = (6 / (512 + 64)) ** 0.5
    for layer in (xavier.down, xavier.up):
        assert layer.bias is not None and 0 < layer.bias.abs().max() < 1e-5
        assert 0.95 * bound < layer.weight.abs().max() <= bound
    assert not houlsby.identity_at_start and not xavier.identity_at_start


def test_a_factor_is_a_number_and_widens() -> None:
    x = torch.randn(TOKENS)
    plain, scaled = (Adapter.build(AdapterConfig(dim=3, factor=f), site(port(TOKENS, 2))) for f in (1.0, 0.1))
    shaken(scaled)
    plain.load_state_dict(scaled.state_dict())  # no parameter of its own
    torch.testing.assert_close(scaled(x), 0.1 * plain(x))
    _model, tuned, x = zoo.compiled("convnext", "adapter/adaptformer_foldable", vars={"dim": 4})
    zoo.shake(tuned, 0.3)
    _, report = utc.fold(tuned)
    assert {s.status for s in report.sites} == {"widened"} and max(s.max_error for s in report.sites) < 1e-12


def test_a_strided_adapter_on_channels_last() -> None:
    last, first = (
        Adapter.build(AdapterConfig(dim=3), site(port(a, axis), port(b, axis, "y")))
        for a, b, axis in (((2, 7, 7, 8), (2, 4, 4, 6), 3), ((2, 8, 7, 7), (2, 6, 4, 4), 1))
    )
    shaken(last)
    first.load_state_dict({k: v.reshape(first.state_dict()[k].shape) for k, v in last.state_dict().items()})
    x = torch.randn(2, 7, 7, 8)
    torch.testing.assert_close(last(x), first(x.movedim(-1, 1)).movedim(1, -1))


# --- prefix and prompt in parallel --------------------------------------------------------------------------------------


def test_a_prefix_beside_attention_attends_with_its_queries() -> None:
    """U-Tuning's equation: exact prefix tuning is (1-λ)·Attn + λ·T, with this T."""
    from utcompile.graph import Operation

    heads = port((2, 4, 5, 8), None, "o")
    tuner = Prefix.build(PrefixConfig(length=3, scale="channel"), site(heads, captures={"o": Operation("sdpa")}))
    assert tuner.keys.shape == (4, 3, 8) and tuner.scale is not None and tuner.scale.shape == (4, 1, 8)
    q, k, v = (torch.randn(2, 4, 5, 8) for _ in range(3))
    assert not tuner(q).any() and tuner.identity_at_start
    shaken(tuner)
    nn.init.ones_(tuner.scale)
    ours = F.scaled_dot_product_attention(q, k, v)
    joined = [torch.cat((p.expand(2, -1, -1, -1), t), 2) for p, t in ((tuner.keys, k), (tuner.values, v))]
    exact = F.scaled_dot_product_attention(q, *joined)
    inside, outside = ((q @ t.mT / 8**0.5).exp().sum(-1, keepdim=True) for t in (tuner.keys, k))
    share = inside / (inside + outside)
    torch.testing.assert_close((1 - share) * ours + share * tuner(q), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [1, 2])
def test_a_prompt_in_parallel_attends_to_itself(axis: int) -> None:
    tuner = shaken(Prompt.build(PromptConfig(length=3, scale="channel"), site(port(TOKENS, axis))))
    x = torch.randn(TOKENS)
    q, p = x.movedim(axis, -1), tuner.tokens
    expected = (q @ p.T / p.shape[1] ** 0.5).softmax(-1) @ p * tuner.scale
    torch.testing.assert_close(tuner(x), expected.movedim(-1, axis))


# --- convolutional adapters ---------------------------------------------------------------------------------------------

LAYERS = {
    "convpass": ["down", "gelu", "conv3", "gelu", "up"],
    "conv_adapter": ["gconv3", "relu", "up"],
    "depthwise": ["dwconv5", "relu", "up"],
    "mona": ["mix_norm", "down", "mona", "gelu", "up"],
}


@pytest.mark.parametrize("name", LAYERS)
def test_layouts_of_one_map_agree(name: str) -> None:
    """NCHW, NHWC and tokens of the same numbers give the same numbers; a class token passes as a map of one pixel."""
    config = ConvAdapterConfig(dim=4, layers=LAYERS[name])
    places = [
        port((2, 8, 3, 5), 1),
        port((2, 3, 5, 8), 3),
        port((2, 15, 8), 2, grid=(3, 5)),
        port((2, 16, 8), 2, grid=(3, 5)),
    ]
    maps, last, tokens, with_class = (ConvAdapter.build(config, site(p)) for p in places)
    x = torch.randn(2, 8, 3, 5)
    assert not maps(x).any()
    shaken(maps)
    for other in (last, tokens, with_class):
        other.load_state_dict(maps.state_dict())
    expected, row = maps(x), x.flatten(2).mT
    torch.testing.assert_close(last(x.movedim(1, -1)).movedim(-1, 1), expected)
    torch.testing.assert_close(tokens(row), expected.flatten(2).mT)
    alone = torch.randn(2, 1, 8)
    found = with_class(torch.cat((alone, row), 1))
    torch.testing.assert_close(found[:, 1:], expected.flatten(2).mT)
    torch.testing.assert_close(found[:, 0], maps(alone[:, 0, :, None, None])[..., 0, 0])


def test_convpass_and_mona_are_their_formulas() -> None:
    x = torch.randn(2, 8, 6, 6)
    convpass = shaken(
        ConvAdapter.build(ConvAdapterConfig(dim=4, layers=LAYERS["convpass"]), site(port((2, 8, 6, 6), 1)))
    )
    down, conv, up = (m for m in convpass.layers if isinstance(m, nn.Conv2d))
    torch.testing.assert_close(convpass(x), up(F.gelu(conv(F.gelu(down(x))))))
    mona = shaken(
        ConvAdapter.build(ConvAdapterConfig(dim=4, layers=LAYERS["mona"]), site(port((2, 8, 6, 6), 1), replaces=True))
    )
    mix, down, op, _, up = mona.layers
    n = (
        F.layer_norm(x.movedim(1, -1), (8,), mix.norm.weight, mix.norm.bias) * mix.gamma
        + x.movedim(1, -1) * mix.gamma_x
    )
    h = down(n.movedim(-1, 1))
    z = h + sum(k(h) for k in op.kernels) / 3
    torch.testing.assert_close(mona(x), x + up(F.gelu(z + op.mix(z))))


def test_a_conv_adapter_strides_with_its_branch_and_says_what_does_not_fit() -> None:
    strided = ConvAdapter.build(
        ConvAdapterConfig(dim=4, layers=LAYERS["conv_adapter"]),
        site(port((2, 8, 7, 7), 1), port((2, 12, 4, 4), 1, "y")),
    )
    assert strided(torch.randn(3, 8, 7, 7)).shape == (3, 12, 4, 4)
    for config, place, message in (
        (ConvAdapterConfig(), port((2, 16, 8), 2), "the grid of 'x' .* is unknown"),
        (ConvAdapterConfig(grid=[5, 5]), port((2, 16, 8), 2), r"is not \[5, 5\]"),
        (ConvAdapterConfig(dim=3, layers=["gconv3", "up"]), port((2, 8, 4, 4), 1), "3 groups do not divide 8 channels"),
        (
            ConvAdapterConfig(layers=["down"]),
            port((2, 16, 4, 4), 1),
            "the layers end with 8 channels, and the target has 16",
        ),
        (ConvAdapterConfig(layers=["up", "relu"]), port((2, 16, 4, 4), 1), "the last layer is 'relu'"),
    ):
        with pytest.raises(utc.UtcError, match=message):
            ConvAdapter.build(config, site(place))
    for word, message in (("conv4", "the kernel size must be odd"), ("dwn", "did you mean 'down'")):
        with pytest.raises(ValueError, match=message):
            ConvAdapterConfig(layers=[word, "up"])


def test_the_grid_may_be_stated() -> None:
    text = """
version: 1
name: t
rules:
  - name: a
    match: {op: linear}
    insert: {sequential: h, tuner: {kind: conv_adapter, dim: 2, grid: [2, 3]}}
"""
    model, x = nn.Sequential(nn.Linear(4, 4)).eval(), torch.randn(2, 7, 4)
    tuned = utc.compile(model, text, x, dynamic=None)
    zoo.shake(tuned, 0.5)
    assert tuned(x).shape == (2, 7, 4)
    with pytest.raises(utc.UtcError, match=r"the grid of 'h' .* is unknown"):
        utc.compile(model, text.replace(", grid: [2, 3]", ""), x)


# --- side networks ------------------------------------------------------------------------------------------------------


def test_a_bypass_is_its_formula() -> None:
    """x_l^b = λ·T_h(x_l) + (1-λ)·T_v(x_{l-1}^b) from x_0^b = x_0, and the last one goes to the head."""
    model, tuned, x = compiled("vit", "res_tuning/bypass")
    zoo.shake(tuned, 0.1)
    tuned.eval()
    state = h = model._pos_embed(model.patch_embed(x))  # type: ignore[operator]
    for i, block in enumerate(model.blocks):  # type: ignore[arg-type]
        h = block(h)
        stage = tuned.tuner(f"side/blocks.{i}/0")
        assert isinstance(stage, Bypass)
        state = 0.5 * stage.horizontal(h) + 0.5 * stage.vertical(state)  # type: ignore[misc]
    pooled = model.forward_head(model.norm(state), pre_logits=True)  # type: ignore[operator]
    expected = F.linear(pooled, tuned.get_parameter("head.weight"), tuned.get_parameter("head.bias"))
    torch.testing.assert_close(tuned(x), expected, rtol=1e-4, atol=1e-5)


def test_lambda_may_be_learned_and_a_chain_may_begin_with_its_first_stage() -> None:
    model, x = zoo.make("vit")
    text = utc.RuleSet.load("res_tuning/bypass").text
    learned = utc.compile(model, text.replace("gate: $gate", "gate: $gate, learn_gate: true"), x)
    plain = utc.compile(model, text, x)
    assert learned.trainable_parameters()[0] - plain.trainable_parameters()[0] == len(plain.sites) == 6
    without = utc.compile(model, text.replace(", from: x", ""), x)
    first = without.tuner("side/blocks.0/0")
    assert isinstance(first, Bypass) and first.vertical is None and first.gate is None


def test_no_gradient_enters_the_backbone() -> None:
    """With a side network alone, nothing of the backbone is saved for backward."""
    _, tuned, x = compiled("vit", "res_tuning/bypass")
    x.requires_grad_()
    tuned(x).sum().backward()
    assert x.grad is None or not x.grad.any()


def test_a_stage_says_what_it_cannot_bring_where() -> None:
    with pytest.raises(utc.UtcError, match=r"cannot bring 'state' .* to 'z'"):
        Bypass.build(BypassConfig(), ChainSite(source=port((2, 5, 8), 2), target=port((2, 4, 8), 2, "z"), is_last=True))
