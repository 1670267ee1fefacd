"""One name for every spelling; channel axes; composites."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support import models as zoo
from torch import nn

import utcompile as utc
from utcompile.graph import BATCH, Fitter, GraphView, Size, Symbol, dependence_graph, flops, info


class Calls(nn.Module):
    """Wraps a function, and has a weight."""

    def __init__(self, function: Callable[..., torch.Tensor], *weights: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, *self.weights)


def view_of(model: nn.Module, x: torch.Tensor) -> GraphView:
    captured = utc.capture(model.eval(), x)
    return GraphView(captured.graph, captured)


IMAGE, TOKENS = torch.randn(2, 4, 6, 6), torch.randn(2, 5, 8)


@pytest.mark.parametrize(
    ("name", "models"),
    [
        ("linear", [nn.Linear(8, 3), Calls(F.linear, torch.randn(3, 8))]),
        (
            "relu",
            [
                nn.ReLU(),
                nn.ReLU(inplace=True),
                Calls(F.relu),
                Calls(torch.relu),
                Calls(lambda x: x.relu()),
                Calls(lambda x: (x * 1).relu_()),
                Calls(lambda x: F.relu(x * 1, inplace=True)),
            ],
        ),
        ("gelu", [nn.GELU(), Calls(F.gelu)]),
        ("silu", [nn.SiLU(), Calls(F.silu)]),
        ("relu6", [nn.ReLU6(), Calls(F.relu6)]),
        ("sigmoid", [nn.Sigmoid(), Calls(torch.sigmoid), Calls(lambda x: x.sigmoid())]),
        ("layer_norm", [nn.LayerNorm(8), Calls(lambda x: F.layer_norm(x, (8,)))]),
        (
            "add",
            [
                Calls(lambda x: x + x * 2),
                Calls(lambda x: torch.add(x, x * 2)),
                Calls(lambda x: x.add(x * 2)),
                Calls(lambda x: (x * 1).add_(x * 2)),
            ],
        ),
        ("mul", [Calls(lambda x: 2 * x), Calls(lambda x: x.mul(2)), Calls(lambda x: torch.mul(x, 2))]),
        ("matmul", [Calls(lambda x: x @ x.mT), Calls(lambda x: torch.bmm(x, x.mT)), Calls(lambda x: x.matmul(x.mT))]),
        ("softmax", [nn.Softmax(-1), Calls(lambda x: x.softmax(-1)), Calls(lambda x: F.softmax(x, -1))]),
        (
            "reshape",
            [
                nn.Flatten(),
                Calls(lambda x: x.view(2, -1) if False else x.flatten(1)),
                Calls(lambda x: x.reshape(x.shape[0], 40)),
                Calls(lambda x: torch.unsqueeze(x, 1)),
            ],
        ),
        ("permute", [Calls(lambda x: x.permute(0, 2, 1)), Calls(lambda x: torch.permute(x, (0, 2, 1)))]),
        ("transpose", [Calls(lambda x: x.transpose(1, 2)), Calls(lambda x: torch.transpose(x, 1, 2))]),
        ("dropout", [nn.Dropout(0.5), Calls(lambda x: F.dropout(x, 0.5, False))]),
    ],
)
def test_every_spelling_has_one_name(name: str, models: list[nn.Module]) -> None:
    for model in models:
        view = view_of(nn.Sequential(model), TOKENS)
        assert name in {op.name for op in view.operations.values()}, model


def test_attributes_have_schema_names_and_defaults() -> None:
    layer = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
    function = Calls(lambda x, w: F.conv2d(x, w, None, 2, padding=1, groups=2), layer.weight.detach())
    for model in (layer, function):
        view = view_of(nn.Sequential(model), IMAGE)
        (node,) = view.by_class["conv2d"]
        op = view.operations[node]
        assert op.attributes["groups"] == 2 and op.attributes["dilation"] in (1, (1, 1)) and "weight" in op.parameters
        assert [n.op for n in op.inputs] == ["placeholder"]


@pytest.mark.parametrize(
    ("layer", "classes"),
    [
        (nn.Conv2d(4, 4, 3, groups=4), {"conv", "depthwise_conv", "conv2d"}),
        (nn.Conv2d(4, 8, 3, groups=2), {"conv", "spatial_conv", "conv2d"}),
        (nn.Conv2d(4, 8, 1), {"conv", "pointwise", "conv2d"}),
        (nn.Conv2d(4, 8, 1, groups=2), {"conv", "conv2d"}),
        (nn.BatchNorm2d(4), {"norm", "branch_norm", "batch_norm"}),
        (nn.AdaptiveAvgPool2d(1), {"pool"}),
        (nn.Identity(), {"layout", "identity"}),
    ],
)
def test_classes(layer: nn.Module, classes: set[str]) -> None:
    view = view_of(nn.Sequential(layer), IMAGE)
    (node,) = [n for n in view.nodes if n.op == "call_module"]
    assert view.classes[node] == classes


def test_channel_axes_follow_permutes_reshapes_and_windows() -> None:
    view = GraphView(zoo.captured("swin").graph, zoo.captured("swin"))
    axis = {n.name: view.channel_axis[n] for n in view.nodes}
    assert axis["layers_0_blocks_0_norm1"] == 3 and axis["layers_0_blocks_0_attn_qkv"] == 2
    assert axis["layers_0_blocks_0_permute"] == 5 and axis["patch_embed_proj"] == 1
    assert axis["layers_0_blocks_0_attn_matmul"] is None  # scores have no channels


def test_a_mixers_token_mixing_is_added_to_the_streams_channels() -> None:
    view = GraphView(zoo.captured("mixer").graph, zoo.captured("mixer"))
    add = next(n for n in view.nodes if n.name == "blocks_0_add")
    assert [view.channel_axis[n] for n in view.operations[add].inputs] == [2, 2]


def test_spelled_out_attention_is_one_operation() -> None:
    view = GraphView(zoo.captured("swin").graph, zoo.captured("swin"))
    assert len(view.by_class["sdpa"]) == 5
    softmax = view_of(Calls(lambda x: x.softmax(-1) * 2), TOKENS)
    assert not softmax.by_class["sdpa"]


def test_a_size_is_one_polynomial_through_all_samples() -> None:
    fit = Fitter([BATCH], [{BATCH: b} for b in (2, 3, 5)])
    assert fit((4, 9, 25)) is None  # B² passes for 5·B - 6 at two of them
    assert fit((5, 7, 11)) == Size((((BATCH,), 2), ((), 1)))
    length = Symbol("L", 16)
    samples = [{BATCH: b, length: n} for b, n in [(2, 16), (2, 9), (3, 16), (3, 9), (5, 12)]]
    both = Fitter([BATCH, length], samples)
    product = both([b * n + 1 for b, n in [(2, 16), (2, 9), (3, 16), (3, 9), (5, 12)]])
    assert isinstance(product, Size) and str(product) == "B*L+1" and product.at(4) == 65 and product.is_whole
    halves = both([8, 4, 8, 4, 6])
    assert halves is None  # 9 // 2 is no half of 9
    quarter = both([4, 2, 4, 2, 3])
    assert quarter is None or not quarter.is_whole


@pytest.mark.parametrize("kind", zoo.MODELS)
def test_flops_are_torchs_own_count(kind: str) -> None:
    model, x = zoo.make(kind)
    view = GraphView(zoo.captured(kind).graph, zoo.captured(kind))
    counted = ("linear", "conv1d", "conv2d", "matmul", "sdpa", "einsum")
    found = sum(flops(n, op, len(x)) for n, op in view.operations.items() if op.name in counted)
    assert found == zoo.flops_of(lambda: model(x)) > 0


def test_dependence() -> None:
    view = view_of(Calls(lambda x: torch.relu(x) + torch.tanh(x)), TOKENS)
    x, relu, tanh, add = (view.by_class[n][0] for n in ("placeholder", "relu", "tanh", "add"))
    assert view.depends(add, x) and view.depends(relu, x) and not view.depends(relu, tanh) and not view.depends(x, add)
    found = sorted(n.name for n in dependence_graph(x.graph).successors(x) if not info(n).check)
    assert found == ["relu", "tanh"]
