"""The table of operations: every spelling of an operation reads alike, and says what torch says."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.draws import examples
from torch import fx, nn

import utcompile as utc
from utcompile.graph import BATCH, GraphView, Operation, Size, Value, info, module_operation, operation
from utcompile.graph.spellings import FUNCTIONS, METHODS, MODULES, Spelling, spelled
from utcompile.ops import ROWS
from utcompile.ops.made import MADE
from utcompile.rules import names

X, IMAGE = torch.randn(2, 6, 8), torch.randn(2, 4, 6, 6)


class Calls(nn.Module):
    """A function as a model; its tensors are parameters."""

    def __init__(self, function: Callable[..., torch.Tensor], *weights: torch.Tensor) -> None:
        super().__init__()
        self.function, self.weights = function, nn.ParameterList(weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, *self.weights)


def last_operation(model: Any, x: torch.Tensor) -> Operation:
    """The operation whose value is the model's output."""
    model = model if isinstance(model, nn.Module) else Calls(*model) if isinstance(model, tuple) else Calls(model)
    captured = utc.capture(nn.Sequential(model).eval(), x, dynamic=())
    view = GraphView(captured.graph, captured)
    (node,) = view.nodes[-1].all_input_nodes
    return view.operations[node]


W, B = torch.randn(3, 8), torch.randn(3)
K = torch.randn(8, 2, 3, 3)
conv, linear, norm = nn.Conv2d(4, 8, 3, 2, 1, groups=2, bias=False), nn.Linear(8, 3), nn.LayerNorm(8)
# operation, input, its spellings
SPELLINGS: list[tuple[str, torch.Tensor, list[Any]]] = [
    ("linear", X, [linear, (F.linear, W, B), (lambda x, w, b: F.linear(bias=b, weight=w, input=x), W, B)]),
    ("linear", X, [nn.Linear(8, 3, bias=False), (F.linear, W), (lambda x, w: F.linear(x, w, None), W)]),
    ("conv2d", IMAGE, [
        conv, (lambda x, w: F.conv2d(x, w, None, 2, 1, 1, 2), K), (lambda x, w: F.conv2d(x, w, stride=2, padding=(1, 1), groups=2), K),
        (lambda x, w: torch.conv2d(x, w, None, [2, 2], [1, 1], groups=2), K)]),
    ("conv_transpose2d", IMAGE, [nn.ConvTranspose2d(4, 8, 3, 2, bias=False), (lambda x, w: F.conv_transpose2d(x, w, stride=2), torch.randn(4, 8, 3, 3))]),
    ("embedding", torch.arange(6).view(2, 3), [nn.Embedding(9, 4), (F.embedding, torch.randn(9, 4)), (lambda i, w: F.embedding(weight=w, input=i), torch.randn(9, 4))]),
    ("layer_norm", X, [norm, (lambda x, w, b: F.layer_norm(x, [8], w, b), B.new_ones(8), B.new_ones(8))]),
    ("layer_norm", X, [nn.LayerNorm(8, elementwise_affine=False), lambda x: F.layer_norm(x, (8,)), lambda x: F.layer_norm(x, (8,), eps=1e-5)]),
    ("group_norm", IMAGE, [nn.GroupNorm(2, 4, affine=False), lambda x: F.group_norm(x, 2), lambda x: F.group_norm(num_groups=2, input=x)]),
    ("batch_norm", IMAGE, [nn.BatchNorm2d(4, affine=False), (lambda x, m, v: F.batch_norm(x, m, v), torch.zeros(4), torch.ones(4))]),
    ("rms_norm", X, [nn.RMSNorm(8, elementwise_affine=False), lambda x: F.rms_norm(x, (8,)), lambda x: torch.rms_norm(x, (8,))]),
    ("softmax", X, [nn.Softmax(dim=-1), lambda x: x.softmax(-1), lambda x: F.softmax(x, dim=-1), lambda x: torch.softmax(x, -1), lambda x: x.softmax(dim=-1), lambda x: torch.softmax(x, axis=-1)]),
    ("relu", X, [nn.ReLU(), nn.ReLU(inplace=True), F.relu, lambda x: F.relu(x * 1, True), torch.relu, lambda x: x.relu(), lambda x: (x * 1).relu_(), lambda x: torch.relu_(x * 1)]),
    ("gelu", X, [nn.GELU(), F.gelu, lambda x: F.gelu(x, approximate="none")]),
    ("gelu", X, [nn.GELU("tanh"), lambda x: F.gelu(x, approximate="tanh")]),
    ("silu", X, [nn.SiLU(), nn.SiLU(inplace=True), F.silu, lambda x: F.silu(x * 1, inplace=True)]),
    ("sigmoid", X, [nn.Sigmoid(), torch.sigmoid, lambda x: x.sigmoid(), lambda x: (x * 1).sigmoid_(), torch.special.expit]),
    ("leaky_relu", X, [nn.LeakyReLU(0.2), lambda x: F.leaky_relu(x, 0.2), lambda x: F.leaky_relu(x * 1, 0.2, True)]),
    ("celu", X, [nn.CELU(2.0), lambda x: F.celu(x, 2.0), lambda x: torch.celu(x, alpha=2.0)]),
    ("hardtanh", X, [nn.Hardtanh(), F.hardtanh, lambda x: F.hardtanh(x, -1.0, 1.0)]),
    ("softplus", X, [nn.Softplus(), F.softplus, lambda x: F.softplus(x, beta=1)]),
    ("prelu", X, [nn.PReLU(), (F.prelu, torch.ones(1)), (lambda x, w: x.prelu(w), torch.ones(1))]),
    ("dropout", X, [nn.Dropout(0.1), lambda x: F.dropout(x, 0.1, False), lambda x: F.dropout(x, training=False, p=0.1), lambda x: torch.dropout(x, 0.1, False)]),
    ("add", X, [lambda x: x + 1, lambda x: 1 + x, lambda x: x.add(1), lambda x: torch.add(x, 1), lambda x: (x * 1).add_(1), lambda x: torch.add(x, other=1, alpha=1)]),
    ("add", X, [(lambda x, w: x + w, X), (lambda x, w: w + x, X), (lambda x, w: x.add(w), X), (lambda x, w: torch.add(input=w, other=x), X)]),
    ("mul", X, [lambda x: x * 2, lambda x: 2 * x, lambda x: x.mul(2), lambda x: torch.multiply(x, 2), lambda x: (x + 1).mul_(2)]),
    ("sub", X, [lambda x: x - 2, lambda x: x.sub(2), lambda x: x.subtract(2), lambda x: torch.sub(x, 2), lambda x: (x * 1).sub_(2)]),
    ("sub", X, [lambda x: 2 - x, lambda x: torch.rsub(x, 2)]),
    ("div", X, [lambda x: x / 2, lambda x: x.div(2), lambda x: torch.true_divide(x, 2), lambda x: (x * 1).div_(2)]),
    ("pow", X, [lambda x: x**2, lambda x: x.pow(2), lambda x: torch.pow(x, exponent=2)]),
    ("maximum", X, [lambda x: torch.maximum(x, x * 2), lambda x: torch.max(x, x * 2), lambda x: x.max(x * 2)]),
    ("max", X, [lambda x: x.amax(-1), lambda x: torch.amax(x, dim=-1), lambda x: torch.amax(x, -1, False)]),
    ("matmul", X, [lambda x: x @ x.mT, lambda x: torch.matmul(x, x.mT), lambda x: torch.bmm(x, mat2=x.mT), lambda x: x.bmm(x.mT), lambda x: torch.linalg.matmul(x, x.mT)]),
    ("einsum", X, [lambda x: torch.einsum("bnc,bmc->bnm", x, x), lambda x: torch.einsum("bnc,bmc->bnm", [x, x])]),
    ("mean", X, [lambda x: x.mean(1), lambda x: x.mean(dim=1), lambda x: torch.mean(x, 1), lambda x: torch.mean(x, dim=1, keepdim=False), lambda x: torch.mean(x, axis=1)]),
    ("mean", X, [lambda x: x.mean((0, 1)), lambda x: torch.mean(x, [0, 1]), lambda x: x.mean(dim=[0, 1])]),
    ("clamp", X, [lambda x: x.clamp(0, 1), lambda x: torch.clamp(x, min=0, max=1), lambda x: x.clip(0, 1), lambda x: (x * 1).clamp_(0, 1)]),
    ("clamp", X, [lambda x: x.clamp(min=0), lambda x: x.clamp_min(0), lambda x: torch.clamp_min(x, 0)]),
    ("where", X, [lambda x: torch.where(x > 0, x, 0.0), lambda x: x.where(x > 0, 0.0)]),
    ("masked_fill", X, [lambda x: x.masked_fill(x > 0, 0.0), lambda x: torch.masked_fill(x, x > 0, 0.0), lambda x: (x * 1).masked_fill_(x > 0, 0.0)]),
    ("reshape", X, [lambda x: x.view(2, 48), lambda x: x.reshape(2, 48), lambda x: x.reshape((2, 48)), lambda x: torch.reshape(x, (2, 48)), lambda x: x.view([2, 48])]),
    ("reshape", X, [nn.Flatten(), lambda x: x.flatten(1), lambda x: torch.flatten(x, start_dim=1)]),
    ("reshape", X, [nn.Unflatten(2, (2, 4)), lambda x: x.unflatten(2, (2, 4)), lambda x: torch.unflatten(x, 2, [2, 4])]),
    ("reshape", X, [lambda x: x.unsqueeze(1), lambda x: torch.unsqueeze(x, dim=1)]),
    ("permute", X, [lambda x: x.permute(0, 2, 1), lambda x: x.permute((0, 2, 1)), lambda x: torch.permute(x, [0, 2, 1]), lambda x: x.permute(dims=(0, 2, 1))]),
    ("permute", X, [lambda x: x.movedim(1, 2), lambda x: torch.moveaxis(x, 1, 2)]),
    ("transpose", X, [lambda x: x.transpose(1, 2), lambda x: torch.transpose(x, dim0=1, dim1=2), lambda x: x.swapaxes(1, 2), lambda x: x.swapdims(1, 2)]),
    ("transpose", X, [lambda x: x.mT, lambda x: x.transpose(-2, -1)]),
    ("to", X, [lambda x: x.half(), lambda x: x.to(torch.float16), lambda x: x.to(dtype=torch.float16), lambda x: x.type(torch.float16)]),
    ("to", X, [lambda x: x.cpu(), lambda x: x.to("cpu"), lambda x: x.to(device="cpu")]),
    ("expand", X[:1], [lambda x: x.expand(4, -1, -1), lambda x: x.expand((4, -1, -1)), lambda x: x.expand(size=(4, -1, -1)), lambda x: torch.broadcast_to(x, (4, -1, -1))]),
    ("roll", X, [lambda x: x.roll(1, 1), lambda x: torch.roll(x, shifts=1, dims=1)]),
    ("pad", IMAGE, [nn.ZeroPad2d(1), lambda x: F.pad(x, (1, 1, 1, 1)), lambda x: F.pad(x, [1, 1, 1, 1], mode="constant")]),
    ("pool", IMAGE, [nn.MaxPool2d(2), lambda x: F.max_pool2d(x, 2), lambda x: F.max_pool2d(x, kernel_size=(2, 2), stride=2)]),
    ("pool", IMAGE, [nn.AvgPool2d(3, 2, 1), lambda x: F.avg_pool2d(x, 3, 2, 1), lambda x: F.avg_pool2d(x, 3, stride=(2, 2), padding=1)]),
    ("pool", IMAGE, [nn.AdaptiveAvgPool2d(1), lambda x: F.adaptive_avg_pool2d(x, 1), lambda x: F.adaptive_avg_pool2d(x, (1, 1))]),
    ("interpolate", IMAGE, [nn.Upsample(scale_factor=2), lambda x: F.interpolate(x, scale_factor=2), lambda x: F.interpolate(x, None, 2, "nearest")]),
    ("pixel_shuffle", IMAGE, [nn.PixelShuffle(2), lambda x: F.pixel_shuffle(x, 2), lambda x: torch.pixel_shuffle(x, 2)]),
    ("cat", X, [lambda x: torch.cat([x, x], 1), lambda x: torch.cat((x, x), dim=1), lambda x: torch.concat(tensors=[x, x], dim=1)]),
    ("glu", X, [nn.GLU(), F.glu, lambda x: F.glu(x, -1)]),
    ("normalize", X, [lambda x: F.normalize(x, dim=-1), lambda x: F.normalize(x, 2.0, -1)]),
    ("logical_not", X, [lambda x: torch.logical_not(x > 0), lambda x: (x > 0).logical_not()]),
    ("bitwise_not", X, [lambda x: ~(x > 0), lambda x: torch.bitwise_not(x > 0)]),
    ("bitwise_and", X, [lambda x: (x > 0) & (x < 1), lambda x: torch.bitwise_and(x > 0, x < 1)]),
    ("gt", X, [lambda x: x > 0, lambda x: x.gt(0), lambda x: torch.greater(x, 0)]),
    ("neg", X, [lambda x: -x, lambda x: x.neg(), torch.negative]),
    ("sdpa", X, [lambda x: F.scaled_dot_product_attention(x, x, x), lambda x: F.scaled_dot_product_attention(key=x, value=x, query=x, is_causal=False)]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "x", "models"), SPELLINGS, ids=[f"{i}-{s[0]}" for i, s in enumerate(SPELLINGS)])
def test_every_spelling_reads_alike(name: str, x: torch.Tensor, models: list[Any]) -> None:
    first, *others = (last_operation(model, x) for model in models)
    assert first.name == name
    for other in others:
        assert (other.name, other.attributes) == (first.name, first.attributes)
        assert len(other.inputs) == len(first.inputs) and other.parameters.keys() == first.parameters.keys()


def test_tensors_are_read_in_the_order_of_the_schema() -> None:
    class Masked(nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(attn_mask=m, value=v, key=k, query=q)

    captured = utc.capture(Masked(), (X, X.clone(), X.clone(), torch.randn(2, 6, 6)), dynamic=())
    view = GraphView(captured.graph, captured)
    (node,) = view.by_class["sdpa"]
    assert [n.name for n in view.operations[node].inputs] == ["q", "k", "v", "m"]


def test_a_range_whose_end_is_computed_is_read() -> None:
    class Upto(nn.Module):
        def forward(self, x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
            return x[torch.arange(n.max())]

    captured = utc.capture(Upto(), (torch.randn(4, 2), torch.tensor([2, 3])), dynamic={})
    view = GraphView(captured.graph, captured)
    (node,) = view.by_class["arange"]
    assert view.operations[node].name == "arange"


# --- over the whole table ---------------------------------------------------------------------------------------------

CALLABLES: list[tuple[str, Any, Spelling]] = [
    *(("call_function", f, s) for f, s in FUNCTIONS.items()),
    *(("call_method", m, s) for m, s in METHODS.items()),
]


def read(kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation:
    """A call with a tensor in the place of each `"tensor"`, read."""
    graph = fx.Graph()
    tensor = graph.placeholder("x")
    info(tensor).value = Value((Size((((BATCH,), 1),)), 4), torch.float32, torch.device("cpu"), 0)
    args, kwargs = fx.node.map_aggregate(
        (args, kwargs), lambda a: tensor if isinstance(a, str) and a == "tensor" else a
    )
    return operation(graph.create_node(kind, target, args, dict(kwargs)), nn.Module())


@settings(max_examples=examples(100, full=400), deadline=None)
@given(call=st.sampled_from(CALLABLES), data=st.data())
def test_positional_keyword_and_default_arguments_read_alike(
    call: tuple[str, Any, Spelling], data: st.DataObject
) -> None:
    kind, target, spelling = call
    keyword_only = len(spelling.schema) if spelling.variadic is None else spelling.schema.index(spelling.variadic)
    values: dict[str, Any] = {}
    for i, name in enumerate(spelling.schema):
        if name == spelling.variadic:
            values[name] = (3, 5)
        elif name in spelling.defaults:
            values[name] = spelling.defaults[name]
        else:
            values[name] = "tensor" if name in ("input", "other", "self") and name != "exponent" else 7 + i
    positional = data.draw(st.integers(1 if kind == "call_method" else 0, keyword_only))
    left = [n for n in spelling.schema[positional:] if n in spelling.defaults and data.draw(st.booleans())]
    args = tuple(values[n] for n in spelling.schema[:positional])
    kwargs = {n: values[n] for n in spelling.schema[positional:] if n not in left}
    plain = read(
        kind,
        target,
        tuple(values[n] for n in spelling.schema[:keyword_only]),
        {n: values[n] for n in spelling.schema[keyword_only:]},
    )
    found = read(kind, target, args, kwargs)
    assert (found.name, found.attributes, len(found.inputs)) == (plain.name, plain.attributes, len(plain.inputs))
    assert "." not in found.name


@pytest.mark.parametrize(
    "word", sorted({word for row in ROWS.values() for _, words in row.spellings for word in words.split()})
)
def test_every_word_of_the_table_is_torchs(word: str) -> None:
    assert spelled(word), f"torch {torch.__version__} has no {word}"


def test_the_tables_argument_names_and_defaults_are_torchs() -> None:
    """Functions written in Python tell their signatures."""
    checked = 0
    for function, spelling in FUNCTIONS.items():
        if (
            not inspect.isfunction(function)
            or spelling.variadic
            or not function.__module__.startswith("torch.nn.functional")
        ):
            continue
        theirs = {spelling.renamed.get(n, n): p for n, p in inspect.signature(function).parameters.items()}
        if "args" in theirs:  # torch chooses among two by the flag return_indices
            continue
        ours = [n for n in spelling.schema if not n.startswith("_") and (n != "padding_mode" or n in theirs)]
        assert [n for n in theirs if n in ours] == [n for n in ours if n in theirs], function
        assert {n for n in theirs if not n.startswith("_") and n not in ("inplace", "out")} <= {*ours}, function
        for name in ours:
            if name in theirs and theirs[name].default is not inspect.Parameter.empty:
                assert spelling.defaults.get(name) == theirs[name].default, (function, name)
        checked += 1
    assert checked > 30


@pytest.mark.parametrize("cls", sorted(MODULES, key=lambda c: c.__name__), ids=lambda c: c.__name__)
def test_a_layers_attributes_are_those_of_its_schema(cls: type[nn.Module]) -> None:
    needed = [
        p
        for p in inspect.signature(cls).parameters.values()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    special = {
        nn.Unflatten: (1, (2, 2)),
        nn.AdaptiveMaxPool2d: (1,),
        nn.SyncBatchNorm: (4,),
        nn.RNN: (4, 4),
        nn.LSTM: (4, 4),
        nn.GRU: (4, 4),
        nn.UpsamplingNearest2d: (2,),
        nn.UpsamplingBilinear2d: (2,),
        nn.Upsample: (2,),
    }
    name, attributes = module_operation(cls(*special.get(cls, [2] * len(needed))))
    spelling = MODULES[cls]
    derived = {
        "kernel_size",
        "in_features",
        "out_features",
        "in_channels",
        "out_channels",
        "num_embeddings",
        "embedding_dim",
    }
    assert name == spelling.name and attributes.keys() - derived <= {*spelling.schema, *spelling.fixed}
    tensors = {"weight", "bias", "hx", "offsets", "running_mean", "running_var", "input2", "grid", "other", "value"}
    silent = {n for n in spelling.schema if spelling.silent(n)}
    assert {*spelling.schema[1:]} - tensors - silent <= attributes.keys()


# --- what is not in the table -----------------------------------------------------------------------------------------


class Linear(nn.Module):
    """Bears a layer's name and is none."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Shifted(nn.Linear):
    """A layer with its own forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


class Renamed(nn.Linear):
    """A layer under another name."""


class Double(torch.autograd.Function):
    """Recorded as one node."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 2


def softmax(x: torch.Tensor) -> torch.Tensor:
    """No softmax."""
    return x


def test_what_is_not_in_the_table_keeps_its_own_name() -> None:
    assert module_operation(Linear())[0] == f"{__name__}.Linear"
    assert module_operation(Shifted(2, 2))[0] == f"{__name__}.Shifted"
    assert module_operation(Renamed(2, 2))[0] == "linear"
    assert read("call_function", softmax, ("tensor",), {}).name == f"{__name__}.softmax"
    assert read("call_method", "frobnicate", ("tensor",), {}).name == "Tensor.frobnicate"
    assert read("call_function", torch.cholesky_inverse, ("tensor",), {}).name == "torch.cholesky_inverse"
    opaque = last_operation(Calls(lambda x: Double.apply(x)), X)
    assert "." in opaque.name and len(opaque.inputs) == 1


def test_the_words_of_patterns_are_the_names_of_the_table() -> None:
    assert names.OPERATIONS.keys() | {"dropout"} == ROWS.keys() - {row.name for row in MADE}
    assert not {row.name for row in MADE} & names.RESERVED
