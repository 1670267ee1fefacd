"""Affine maps of channels are absorbed through what lies between, and kept where algebra does not allow it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support import models as zoo
from torch import nn

import utcompile as utc

RULE = """
version: 1
name: t
rules:
  - name: s
    match: {{op: {op}}}
    select: {{indices: [{index}]}}
    insert: {{sequential: h, tuner: {tuner}}}
"""
TOLERANCE = 1e-12  # float64, some layers


def folded(model: nn.Module, x: torch.Tensor, op: str, tuner: str, index: int = 0) -> tuple[str, str, int]:
    """Status, reason and added nodes of one sequential tuner; that outputs agree in float64 is checked on the way."""
    torch.manual_seed(0)
    zoo.draw_norms(model)
    tuned = utc.compile(model.eval(), RULE.format(op=op, tuner=tuner, index=index), x)
    zoo.shake(tuned, 0.3)
    if tuner is NEGATIVE:
        nn.init.constant_(tuned.tuner(tuned.sites[0].id).gamma, -1.0)  # type: ignore[arg-type]
    tuned.double().eval()
    result, report = utc.fold(tuned)
    x = x.double() if x.is_floating_point() else x
    with torch.no_grad():
        expected = tuned(x)
        assert ((result(x) - expected).abs().max() / expected.abs().max()).item() < TOLERANCE, report
        with utc.disable_tuners(tuned):
            assert not torch.allclose(tuned(x), expected), "the tuner does nothing"
    return report.sites[0].status, report.sites[0].reason, len(result.graph.nodes) - len(tuned.base_graph.nodes)


NEGATIVE = "{kind: ssf }"
SSF, IA3, REP = "{kind: ssf}", "{kind: ia3}", "{kind: rep_adapter, dim: 2, groups: 1}"
CONV = lambda i, o, k=1, **kw: nn.Conv2d(i, o, k, **kw)  # noqa: E731
IMAGE, TOKENS = (2, 4, 6, 6), (2, 5, 4)

ABSORBED = {
    # name: (input, operation tuned, tuner, layers, forward)
    "ssf after a permute": (IMAGE, "permute", SSF, {"c": CONV(3 + 1, 6)}, lambda m, x: torch.tanh(m.c(x).permute(0, 2, 3, 1))),
    "ssf after two reshapes": (TOKENS, "permute", SSF, {"f": nn.Linear(4, 6)},
        lambda m, x: torch.tanh(m.f(x).reshape(2, 5, 2, 3).permute(0, 2, 1, 3))),
    "ssf on heads, one factor for each channel of a head": (TOKENS, "transpose", SSF, {"f": nn.Linear(4, 6)},
        lambda m, x: torch.tanh(m.f(x).reshape(-1, 5, 2, 3).transpose(1, 2))),
    "ssf on one part of a packed layer": (TOKENS, "dropout", SSF, {"f": nn.Linear(4, 6)},
        lambda m, x: (lambda q, k: torch.tanh(F.dropout(q, 0.1, training=False)) * k)(*m.f(x).chunk(2, -1))),
    "ssf on a slice": (TOKENS, "dropout", SSF, {"f": nn.Linear(4, 6)},
        lambda m, x: (lambda v: torch.tanh(F.dropout(v[..., :2], 0.1, training=False)).sum() + v[..., 2:])(m.f(x))),
    "ia3 on k of packed qkv": (TOKENS, "dropout", IA3, {"f": nn.Linear(4, 12)},
        lambda m, x: (lambda q, k, v: (q @ F.dropout(k, 0.1, training=False).transpose(-1, -2)).softmax(-1) @ v)(*m.f(x).reshape(-1, 5, 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0))),
    "ssf after average pooling": (IMAGE, "pool", SSF, {"c": CONV(4, 6)}, lambda m, x: torch.tanh(F.adaptive_avg_pool2d(m.c(x), 1)).flatten(1)),
    "ssf after a mean": (IMAGE, "mean", SSF, {"c": CONV(4, 6)}, lambda m, x: torch.tanh(m.c(x).mean((2, 3)))),
    "ssf after interpolation": (IMAGE, "interpolate", SSF, {"c": CONV(4, 6)},
        lambda m, x: torch.tanh(F.interpolate(m.c(x), scale_factor=2, mode="bilinear"))),
    "ssf after a LayerScale": (TOKENS, "mul", SSF, {"f": nn.Linear(4, 6), "g": nn.Parameter(1e-6 * torch.randn(6))},
        lambda m, x: x.sum(-1, keepdim=True) + m.f(x) * m.g),
    "ssf after a constant factor": (TOKENS, "mul", SSF, {"f": nn.Linear(4, 6)}, lambda m, x: torch.tanh(m.f(x) * 0.25)),
    "ssf after an added position": (TOKENS, "add", SSF, {"f": nn.Linear(4, 6), "p": nn.Parameter(torch.randn(1, 5, 6))},
        lambda m, x: torch.tanh(m.f(x) + m.p)),
    "ssf after a sum of two layers": (TOKENS, "add", SSF, {"f": nn.Linear(4, 6), "g": nn.Linear(4, 6, bias=False)},
        lambda m, x: torch.tanh(m.f(x) + m.g(x))),
    "ia3 after a product of two layers": (TOKENS, "mul", IA3, {"f": nn.Linear(4, 6), "g": nn.Linear(4, 6)},
        lambda m, x: torch.tanh(m.f(x) * m.g(x).sigmoid())),
    "ia3 through ReLU": (TOKENS, "relu", IA3, {"f": nn.Linear(4, 6)}, lambda m, x: torch.tanh(torch.relu(m.f(x)))),
    "ia3 through max pooling": (IMAGE, "pool", IA3, {"c": CONV(4, 6)}, lambda m, x: torch.tanh(F.max_pool2d(m.c(x), 2))),
    "ssf after grouped, depthwise, transposed": (IMAGE, "conv_transpose2d", SSF, {"c": nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2)}, lambda m, x: torch.tanh(m.c(x))),
    "ssf after an embedding": ((2, 5), "embedding", SSF, {"e": nn.Embedding(7, 6)}, lambda m, x: torch.tanh(m.e(x))),
    "ssf after a norm": (TOKENS, "norm", SSF, {"n": nn.LayerNorm(4)}, lambda m, x: torch.tanh(m.n(x))),
    "ssf on to a linear, through dropout and a flatten": (IMAGE, "gelu", SSF, {"i": CONV(4, 4), "f": nn.Linear(4 * 36, 3)},
        lambda m, x: m.f(F.dropout(F.gelu(m.i(x)).flatten(1), 0.5, training=False))),
    "ssf on to a reflected convolution": (IMAGE, "gelu", SSF, {"c": CONV(4, 6, 3, padding=1, padding_mode="reflect", groups=2)}, lambda m, x: m.c(F.gelu(x))),
    "ssf on to two readers": (TOKENS, "gelu", SSF, {"f": nn.Linear(4, 3), "g": nn.Linear(4, 3)},
        lambda m, x: (lambda h: m.f(h) * m.g(h))(F.gelu(x))),
    "ia3 on to a product, then a linear": (TOKENS, "gelu", IA3, {"f": nn.Linear(4, 3), "g": nn.Linear(4, 4)},
        lambda m, x: m.f(F.gelu(x) * m.g(x))),
    "ia3 on to a transposed convolution": (IMAGE, "gelu", IA3, {"c": nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2)}, lambda m, x: m.c(F.gelu(x))),
    "ssf on to a BatchNorm": (IMAGE, "gelu", SSF, {"b": nn.BatchNorm2d(4)}, lambda m, x: torch.tanh(m.b(F.gelu(x)))),
    "ssf on through a concatenation": (IMAGE, "gelu", SSF, {"i": CONV(4, 4), "c": CONV(8, 3)}, lambda m, x: m.c(torch.cat([x.sin(), F.gelu(m.i(x))], 1))),
    "ssf on through windows": (IMAGE, "gelu", SSF, {"f": nn.Linear(4, 3)},
        lambda m, x: m.f(F.gelu(x).permute(0, 2, 3, 1).reshape(-1, 3, 2, 3, 2, 4).transpose(2, 3).reshape(-1, 4, 4))),
    "ia3 on through a pixel shuffle": (IMAGE, "gelu", IA3, {"i": CONV(4, 4), "c": CONV(4, 3)}, lambda m, x: m.c(F.pixel_unshuffle(F.pixel_shuffle(F.gelu(m.i(x)), 2), 2))),
    "rep_adapter after a permute": (IMAGE, "permute", REP, {"c": CONV(4, 6)}, lambda m, x: torch.tanh(m.c(x).permute(0, 2, 3, 1))),
    "rep_adapter after a LayerScale and a constant": (TOKENS, "mul", REP, {"f": nn.Linear(4, 6), "g": nn.Parameter(1e-6 * torch.randn(6))},
        lambda m, x: torch.tanh((1e6 * m.f(x)) * m.g)),
    "rep_adapter after a BatchNorm": (IMAGE, "batch_norm", REP, {"c": CONV(4, 6, 3), "b": nn.BatchNorm2d(6)}, lambda m, x: torch.tanh(m.b(m.c(x)))),
    "rep_adapter on to a linear, through a permute and a flatten": (IMAGE, "gelu", REP, {"f": nn.Linear(4, 3)},
        lambda m, x: m.f(F.gelu(x).flatten(2).transpose(1, 2))),
    "rep_adapter after pooling": (IMAGE, "pool", REP, {"c": CONV(4, 6)}, lambda m, x: torch.tanh(F.avg_pool2d(m.c(x), 2))),
}  # fmt: skip

KEPT = {
    # name: (input, operation tuned, tuner, layers, forward, reason)
    "ssf before zeros": (IMAGE, "gelu", SSF, {"c": CONV(4, 6, 3, padding=1)}, lambda m, x: m.c(F.gelu(x)), "pads its input with zeros"),
    "ssf before explicit zeros": (IMAGE, "gelu", SSF, {"c": CONV(4, 6, 3)}, lambda m, x: m.c(F.pad(F.gelu(x), (1, 1, 1, 1))), "differs by position"),
    "ssf through ReLU": (TOKENS, "relu", SSF, {"f": nn.Linear(4, 6)}, lambda m, x: torch.tanh(torch.relu(m.f(x))), "only positive factors pass"),
    "ssf before an activation": (TOKENS, "gelu", SSF, {"f": nn.Linear(4, 6)}, lambda m, x: torch.tanh(F.gelu(m.f(x))), "has no weight that could take it"),
    "ssf through max pooling, with a negative factor": (IMAGE, "pool", NEGATIVE, {"c": CONV(4, 6)},
        lambda m, x: torch.tanh(F.max_pool2d(m.c(x), 2)), "its factor is not positive"),
    "ssf on a value that is read twice": (TOKENS, "add", SSF, {"f": nn.Linear(4, 4)}, lambda m, x: (lambda h: torch.tanh(x + h) * h)(m.f(x)), "is read by"),
    "ssf after padded averages": (IMAGE, "pool", SSF, {"c": CONV(4, 6)}, lambda m, x: torch.tanh(F.avg_pool2d(m.c(x), 3, 1, 1)), "averages zeros at the border"),
    "ssf on to a transposed convolution": (IMAGE, "gelu", SSF, {"c": nn.ConvTranspose2d(4, 6, 3, 2, 1)}, lambda m, x: m.c(F.gelu(x)), "what it makes of a shift is no constant"),
    "rep_adapter through ReLU": (TOKENS, "relu", REP, {"f": nn.Linear(4, 6)}, lambda m, x: torch.tanh(torch.relu(m.f(x))), "no full matrix passes through it"),
    "rep_adapter through max pooling": (IMAGE, "pool", REP, {"c": CONV(4, 6)}, lambda m, x: torch.tanh(F.max_pool2d(m.c(x), 2)), "no full matrix passes through it"),
    "rep_adapter after a grouped convolution": (IMAGE, "conv", REP, {"c": CONV(4, 6, groups=2)}, lambda m, x: torch.tanh(m.c(x)), "cannot take a full matrix"),
    "rep_adapter after heads": (TOKENS, "transpose", REP, {"f": nn.Linear(4, 6)}, lambda m, x: torch.tanh(m.f(x).reshape(-1, 5, 2, 3).transpose(1, 2)), "takes the channels apart"),
    "ssf after a shared position": (TOKENS, "add", SSF, {"f": nn.Linear(4, 6), "p": nn.Parameter(torch.randn(1, 5, 6))},
        lambda m, x: torch.tanh(m.f(x) + m.p) + m.p, "p is shared with"),
    "ssf after a layer that something else reads": (TOKENS, "dropout", SSF, {"f": nn.Linear(4, 4)},
        lambda m, x: (lambda h: torch.tanh(F.dropout(h, 0.1, training=False)) + h)(m.f(x)), "is read by"),
    "ssf after a repetition": (TOKENS, "repeat", SSF, {"f": nn.Linear(4, 4)}, lambda m, x: torch.tanh(m.f(x).repeat(1, 1, 2)), "repeats numbers that the tuner treats differently"),
    "ssf after a product of two layers": (TOKENS, "mul", SSF, {"f": nn.Linear(4, 6), "g": nn.Linear(4, 6)},
        lambda m, x: torch.tanh(m.f(x) * m.g(x).sigmoid()), "mul (mul) has no weight that could take it"),
    "rep_adapter after a BatchNorm that is called twice": (IMAGE, "batch_norm", REP, {"c": CONV(4, 4, 3, padding=1), "b": nn.BatchNorm2d(4)},
        lambda m, x: torch.tanh(m.b(m.c(x))) + m.b(x), "is shared with"),
    "ssf on what is returned": (TOKENS, "gelu", SSF, {"f": nn.Linear(4, 4)}, lambda m, x: F.gelu(m.f(x)), "the model returns it"),
}  # fmt: skip


def make(shape: tuple[int, ...], layers: dict[str, object], forward: object) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randint(7, shape) if len(shape) == 2 else torch.randn(shape)
    return zoo.Layers(forward, layers), x  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ABSORBED)
def test_absorbed(name: str) -> None:
    shape, op, tuner, layers, forward = ABSORBED[name]
    model, x = make(shape, layers, forward)
    status, reason, added = folded(model, x, op, tuner)
    assert status == "absorbed", reason
    assert added == 0


@pytest.mark.parametrize("name", KEPT)
def test_kept_with_its_reason(name: str) -> None:
    shape, op, tuner, layers, forward, expected = KEPT[name]
    model, x = make(shape, layers, forward)
    status, reason, _ = folded(model, x, op, tuner)
    assert status == "kept" and expected in reason, (status, reason)


class OfItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(4, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mha(x, x, x)[0]


LAYERS = {
    "attention": OfItself,
    "encoder": lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.0, bias=False),
    "encoders": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(4, 1, 8, 0.0, bias=False), 2, enable_nested_tensor=False
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_added_biases_move_on_through_views(kind: str) -> None:
    """Found by torch's database of modules: a stand-in of a value could not be viewed as the value could."""
    model, x = LAYERS[kind]().eval(), torch.randn(5, 3, 4)
    rule = RULE.format(op="linear", tuner="{kind: ssf}", index=0).replace("    select: {indices: [0]}\n", "")
    tuned = utc.compile(model, rule.replace("sequential", "weight"), x)
    zoo.shake(tuned, 0.3)
    tuned.double().eval()
    result, report = utc.fold(tuned)
    expected = tuned(x.double())
    assert not report.kept
    assert ((result(x.double()) - expected).abs().max() / expected.abs().max()).item() < TOLERANCE


BESIDE = {
    # a layer, and why it cannot take the tuner
    "no tap at its own position": (CONV(4, 4, 2, padding=1, dilation=2), "no tap of conv2d"),
    "a layer that strides": (CONV(4, 4, 1, stride=2, padding=3), "strides"),
    "groups that the tuner joins": (CONV(4, 4, 3, padding=1, groups=2), "the tuner joins its groups"),
}


@pytest.mark.parametrize("name", BESIDE)
def test_kept_beside_a_layer(name: str) -> None:
    layer, expected = BESIDE[name]
    rule = RULE.replace("sequential: h", "parallel: x -> h")
    model, x = make(IMAGE, {"c": layer}, lambda m, x: torch.tanh(m.c(x.sin())))
    tuned = utc.compile(model.eval(), rule.format(op="conv", index=0, tuner=REP), x)
    zoo.shake(tuned, 0.3)
    _, report = utc.fold(tuned.double().eval())
    assert report.sites[0].status == "kept" and expected in report.sites[0].reason, report
