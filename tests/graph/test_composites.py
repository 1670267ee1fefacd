"""What a model spells out is read as one operation; what only looks like it is not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import utcompile as utc
from utcompile.graph import GraphView, Operation

X = torch.randn(2, 5, 8)


class Calls(nn.Module):
    """A function of a tensor and of parameters w and b."""

    def __init__(self, function: Callable[..., Tensor], size: int = 8) -> None:
        super().__init__()
        self.function, self.layer = function, nn.Linear(size, size)
        self.w, self.b = nn.Parameter(torch.randn(size)), nn.Parameter(torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x), self.w, self.b)


def last(function: Callable[..., Tensor], x: Tensor = X) -> Operation:
    """How the last operation of a function reads."""
    captured = utc.capture(Calls(function, x.shape[-1]).eval(), x, verify="shapes")
    view = GraphView(captured.graph, captured)
    return view.operations[view.nodes[-1].all_input_nodes[0]]


ROOT = math.sqrt(2 / math.pi)


@pytest.mark.parametrize(
    ("function", "name", "attributes"),
    [
        (lambda x, w, b: x * torch.sigmoid(x), "silu", {}),
        (lambda x, w, b: x.sigmoid() * x, "silu", {}),
        (lambda x, w, b: x / (1 + torch.exp(-x)), "div", None),  # by no curve that is looked for
        (lambda x, w, b: x * torch.sigmoid(1.702 * x), "quick_gelu", {}),
        (lambda x, w, b: 0.5 * x * (1 + torch.tanh(ROOT * (x + 0.044715 * x.pow(3)))), "gelu", {"approximate": "tanh"}),
        (lambda x, w, b: x * 0.5 * (1 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x))), "gelu", {"approximate": "tanh"}),
        (lambda x, w, b: 0.5 * (x * (torch.tanh(ROOT * (x + 0.044715 * x**3)) + 1)), "gelu", {"approximate": "tanh"}),
        (lambda x, w, b: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), "gelu", {"approximate": "none"}),
        (lambda x, w, b: x * torch.tanh(F.softplus(x)), "mish", {}),
        (lambda x, w, b: x * F.relu6(x + 3) / 6, "hardswish", {}),
        (lambda x, w, b: x * F.hardsigmoid(x), "hardswish", {}),
        (lambda x, w, b: F.relu6(x + 3) / 6, "hardsigmoid", {}),
        (lambda x, w, b: x * torch.sigmoid(1.5 * x), "mul", None),
        (lambda x, w, b: x * torch.sigmoid(w * x), "mul", None),
        (lambda x, w, b: x * torch.sigmoid(x.roll(1, 1)), "mul", None),
        (lambda x, w, b: 0.5 * x * (1 + torch.tanh(0.7 * (x + 0.044715 * x.pow(3)))), "mul", None),
        (lambda x, w, b: F.relu6(x + 2) / 6, "div", None),
    ],
)  # fmt: skip
def test_activations(function: Callable[..., Tensor], name: str, attributes: dict[str, str] | None) -> None:
    found = last(function)
    assert found.name == name
    if attributes is not None:
        assert found.attributes == attributes and [n.op for n in found.inputs] == ["call_module"]


@settings(max_examples=15, deadline=None)
@given(st.permutations([0, 1, 2]), st.booleans(), st.booleans(), st.floats(0.2, 5))
def test_no_order_of_factors_hides_a_gelu(order: list[int], left: bool, root_first: bool, scale: float) -> None:
    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        cube = x * x * x * 0.044715 if left else 0.044715 * torch.pow(x, 3)
        inner = ROOT * (x + cube) if root_first else (cube + x) * ROOT
        factors = [x * 0.5, 1 / scale * (1 + torch.tanh(inner)) if left else (1 + torch.tanh(inner)) / scale, scale]
        first, second, third = (factors[i] for i in order)
        return (first * second) * third

    assert last(function).name == "gelu"


def _rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def _centred(x: Tensor, dim: int = -1) -> Tensor:
    d = x - x.mean(dim, keepdim=True)
    return d / torch.sqrt((d**2).mean(dim, keepdim=True) + 1e-5)


@pytest.mark.parametrize(
    ("function", "name", "parameters", "eps"),
    [
        (lambda x, w, b: w * _rms(x.float()).to(x.dtype), "rms_norm", {"weight": "w"}, 1e-6),
        (lambda x, w, b: _rms(x), "rms_norm", {}, 1e-6),
        (lambda x, w, b: _rms(x.float()) * (1.0 + w.float()), "rms_norm", {}, 1e-6),  # Gemma: 1 + w is no parameter
        (lambda x, w, b: x / ((x * x).mean(-1, keepdim=True) + 1e-6).sqrt() * w, "rms_norm", {"weight": "w"}, 1e-6),
        (lambda x, w, b: x * (x.square().mean(-1, True) + 1e-3) ** -0.5 * w, "rms_norm", {"weight": "w"}, 1e-3),
        (lambda x, w, b: _centred(x) * w + b, "layer_norm", {"weight": "w", "bias": "b"}, 1e-5),
        (lambda x, w, b: _centred(x), "layer_norm", {}, 1e-5),
        (
            lambda x, w, b: (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5) * w + b,
            "layer_norm", {"weight": "w", "bias": "b"}, 1e-5,
        ),
        (lambda x, w, b: x.roll(1, 1) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6), "mul", {}, None),
        (lambda x, w, b: x * torch.rsqrt(x.pow(4).mean(-1, keepdim=True) + 1e-6), "mul", {}, None),
        (lambda x, w, b: x * torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6), "mul", {}, None),
    ],
)  # fmt: skip
def test_norms(function: Callable[..., Tensor], name: str, parameters: dict[str, str], eps: float | None) -> None:
    found = last(function)
    assert found.name == name and found.attributes.get("eps") == eps
    if eps is not None:
        assert dict(found.parameters) == parameters and [n.op for n in found.inputs] == ["call_module"]


class ChannelsFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.w, self.b = nn.Conv2d(3, 4, 1), nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return _centred(self.conv(x), 1) * self.w[:, None, None] + self.b[:, None, None]


def test_a_layer_norm_over_the_channels_of_images_keeps_them_on_axis_one() -> None:
    captured = utc.capture(ChannelsFirst().eval(), torch.randn(2, 3, 5, 5))
    view = GraphView(captured.graph, captured)
    (norm,) = view.by_class["norm"]
    assert view.operations[norm].attributes["dim"] == (1,) and view.channel_axis[norm] == 1
    assert dict(view.operations[norm].parameters) == {"weight": "w", "bias": "b"}


def _heads(x: Tensor) -> Tensor:
    return x.view(x.shape[0], 5, 2, 4).transpose(1, 2)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x, w, b: (_heads(x) @ _heads(x).mT * 0.5).softmax(-1) @ _heads(x), "sdpa"),
        (lambda x, w, b: F.dropout((_heads(x) @ _heads(x).mT + b[:5]).softmax(-1), 0.1, False) @ _heads(x), "sdpa"),
        (
            lambda x, w, b: torch.einsum(
                "bhij,bhjd->bhid", torch.einsum("bhid,bhjd->bhij", _heads(x), _heads(x)).softmax(-1), _heads(x)
            ),
            "sdpa",
        ),
        (lambda x, w, b: torch.bmm(torch.baddbmm(b[:5], x, x.mT).softmax(-1), x), "sdpa"),
        (lambda x, w, b: x.softmax(-1) @ x.mT, "matmul"),  # of no product
        (lambda x, w, b: (_heads(x) @ _heads(x).mT).sigmoid() @ _heads(x), "matmul"),
    ],
)
def test_attention(function: Callable[..., Tensor], name: str) -> None:
    found = last(function)
    assert found.name == name and (name != "sdpa" or len(found.inputs) == 3)


class Merge(nn.Module):
    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        return x.reshape(batch, height // 2, 2, width // 2, 2, channels).permute(self.order).flatten(3)


@pytest.mark.parametrize("order", [(0, 1, 3, 4, 2, 5), (0, 1, 3, 2, 4, 5)])
def test_patch_merging(order: tuple[int, ...]) -> None:
    captured = utc.capture(Merge(order).eval(), torch.randn(2, 4, 6, 3))
    view = GraphView(captured.graph, captured)
    assert view.operations[view.nodes[-1].all_input_nodes[0]].name == "pixel_unshuffle"


class Windows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        parts = x.view(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
        return parts.reshape(-1, 2, 2, channels)


def test_windows_are_no_patch_merging() -> None:
    captured = utc.capture(Windows().eval(), torch.randn(2, 4, 6, 3))
    assert not GraphView(captured.graph, captured).by_class["pixel_unshuffle"]
