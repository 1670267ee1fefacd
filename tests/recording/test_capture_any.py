"""What "any model" means: each feature of Python and torch that models use, captured exactly."""

from __future__ import annotations

import copy
import pickle
import random
import warnings
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from support import capture_toys as toys
from torch import nn

import utcompile as utc
from utcompile.graph import GraphView, Role, info

T = torch.Tensor
X = torch.randn(2, 4)


def names(captured: utc.CapturedModule) -> list[str]:
    view = GraphView(captured.graph, captured)
    return [op.name for node, op in view.operations.items() if node.op.startswith("call")]


# --- dtype and device ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_what_follows_the_inputs_dtype_still_does(dtype: torch.dtype) -> None:
    model = toys.Derives()
    captured = utc.capture(model, X)
    assert captured.report.pinned == ()
    cast = copy.deepcopy(model).to(dtype)
    cast.offset = cast.offset.to(dtype)  # a plain attribute, which `.to` does not reach; in the capture it is a buffer
    found = copy.deepcopy(captured).to(dtype)(X.to(dtype))
    assert found.dtype == dtype and torch.equal(found, cast(X.to(dtype)))


def test_what_follows_the_inputs_device_still_does() -> None:
    captured = utc.capture(toys.Derives(), X).to("meta")
    assert captured(X.to("meta")).device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision(dtype: torch.dtype) -> None:
    model, x = toys.Stem().to(dtype), torch.randn(2, 3, 8, 8, dtype=dtype)
    captured = utc.capture(model, x, verify="full")
    assert captured(x).dtype == dtype and captured.dtype == dtype
    assert copy.deepcopy(captured).float()(x.float()).dtype == torch.float32


def test_other_operations_in_another_dtype_pin_it() -> None:
    model = toys.UpcastsHalf()
    captured = utc.capture(model, X)
    assert [p.split(":")[0] for p in captured.report.pinned] == ["dtype"]
    assert "different operations" in str(captured.report) and "capture_toys.py" in captured.report.pinned[0]
    assert torch.equal(captured(X), model(X))
    half = utc.capture(copy.deepcopy(model).bfloat16(), X.bfloat16())
    assert half(X.bfloat16()).dtype == torch.float32


# --- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [8, 3, 1])
def test_the_length_of_token_inputs_is_dynamic(length: int) -> None:
    model = toys.Tokens()
    ids = torch.randint(0, 11, (1, length if length > 1 else 2))
    captured = utc.capture(
        model, {"input_ids": ids, "attention_mask": torch.ones(ids.shape, dtype=torch.long)}, verify="full"
    )
    assert str(next(iter(captured.graph.nodes)).meta["value"]) == "[B, L]"
    for shape in ((3, 5), (1, 9), (4, length)):
        given = torch.randint(0, 11, shape), torch.randint(0, 2, shape)
        assert torch.equal(captured(*given), model(*given))


def test_an_optional_argument_that_the_graph_fixed() -> None:
    model = toys.Tokens()
    ids = torch.randint(0, 11, (2, 5))
    captured = utc.capture(model, {"input_ids": ids, "attention_mask": None, "scaled": False})
    assert torch.equal(captured(ids), model(ids, scaled=False))
    with pytest.raises(utc.UtcError) as caught:
        captured(ids, scaled=True)
    assert str(caught.value) == (
        "the captured model was recorded with scaled=False, not True\n"
        "  fix: capture it again with scaled=True in the example inputs"
    )
    with pytest.raises(utc.UtcError, match="attention_mask=None"):
        captured(ids, torch.ones(2, 5))


def test_other_dimensions_on_request() -> None:
    model = toys.Stem()
    captured = utc.capture(model, torch.randn(1, 3, 32, 32), dynamic={"x": {0: "B", 2: "H", 3: "W"}})
    for shape in ((1, 3, 32, 32), (2, 3, 33, 47), (5, 3, 64, 31)):
        x = torch.randn(shape)
        assert torch.equal(captured(x), model(x))
    assert str(next(iter(captured.graph.nodes)).meta["value"]) == "[B, 3, H, W]"


def test_a_length_that_decides_is_a_guard_with_its_line() -> None:
    model = toys.Window()
    for dynamic in (None, {"ids": {0: "B", 1: "L"}}):
        captured = utc.capture(model, torch.randint(0, 11, (2, 8)), dynamic=dynamic)
        (guard,) = captured.guards
        assert guard.relation == "L % 2 == 0" and guard.source.startswith("capture_toys.py:")
        ids = torch.randint(0, 11, (3, 22))
        assert torch.equal(captured(ids), model(ids))
        with pytest.raises(utc.UtcError, match=r"right for L % 2 == 0, and the call has L=7"):
            captured(torch.randint(0, 11, (3, 7)))


def test_a_length_that_the_model_pins_is_reported_with_its_line() -> None:
    model = toys.Steps()
    captured = utc.capture(model, torch.randint(0, 11, (2, 5)))
    (pinned,) = captured.report.pinned
    assert pinned.startswith("L: the model runs") and "capture_toys.py" in pinned
    ids = torch.randint(0, 11, (3, 5))
    assert torch.equal(captured(ids), model(ids))
    with pytest.raises(utc.UtcError, match=r"ids\.shape\[1\]=5, not 6"):
        captured(torch.randint(0, 11, (3, 6)))
    with pytest.raises(utc.UtcError, match="operations in"):
        utc.capture(model, torch.randint(0, 11, (2, 5)), dynamic={"ids": {0: "B", 1: "L"}})


def test_a_model_that_runs_at_one_batch_only() -> None:
    model, x = toys.Calls(lambda self, x: self.linear(x).view(4, 1, 4)), torch.randn(4, 4)
    captured = utc.capture(model, x)
    assert captured.report.pinned == ("B: the model runs at the example's sizes, and fails at B=2",)
    assert torch.equal(captured(x), model(x))
    with pytest.raises(utc.UtcError, match="fails at B=2"):
        utc.capture(model, x, dynamic=["x"])


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ({"y": {0: "B"}}, "dynamic names 'y', which is no input"),
        ({"x": {7: "H"}}, "dynamic names dimension 7 of 'x', which has 2"),
        ({"x": "H"}, "it takes dimension numbers and names"),
        ({"x": {0: "N2", 1: "N2"}}, "dimensions of different sizes"),
    ],
)
def test_dynamic_that_cannot_be_meant(dynamic: object, message: str) -> None:
    with pytest.raises(utc.UtcError, match=message):
        utc.capture(toys.Derives(), X, dynamic=dynamic)  # type: ignore[arg-type]


def test_a_constant_times_a_power_of_the_batch() -> None:
    captured = utc.capture(toys.Calls(lambda self, x: self.linear(x) / x.shape[0] ** 0.5), X)
    x = torch.randn(7, 4)
    assert torch.equal(captured(x), captured.linear(x) / 7**0.5)


# --- inside -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("need_weights", [False, True])
def test_inside_multihead_attention(need_weights: bool) -> None:
    model, x = toys.Attends(need_weights), torch.randn(2, 5, 8)
    captured = utc.capture(model, x, verify="full")
    assert names(captured).count("linear") == 2 and "attend" not in {str(n.target) for n in captured.graph.nodes}
    read = {str(n.target) for n in captured.graph.nodes if n.op == "get_attr"}
    assert read >= {"attend.in_proj_weight", "attend.out_proj.weight"}


def test_inside_a_transformer_encoder_in_eval() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    captured = utc.capture(model, torch.randn(2, 5, 8), verify="full")
    assert names(captured).count("linear") == 8 and names(captured).count("layer_norm") == 4


def test_an_autograd_function_keeps_its_own_gradient() -> None:
    model = toys.Calls(lambda self, x: toys.Doubled.apply(self.linear(x)) + 1)
    captured = utc.capture(model, X, verify="full")
    x = X.clone().requires_grad_()
    captured(x).sum().backward()
    assert torch.allclose(x.grad, 5 * model.linear.weight.sum(0).expand(2, 4), atol=1e-6)  # sums near zero
    assert "Doubled" in {n.name for n in captured.graph.nodes}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_what_runs_under_checkpoint_is_seen(reentrant: bool) -> None:
    captured = utc.capture(toys.checkpointed(reentrant), X)
    assert [str(n.target) for n in captured.graph.nodes if n.op == "call_module"] == ["linear"]


def regions() -> nn.Module:
    def forward(self: nn.Module, x: T) -> T:
        with torch.no_grad():
            kept = self.linear(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = self.linear(x)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            pass  # an empty region leaves no node
        return x * kept + half

    return toys.Calls(forward)


def test_regions_stay_around_what_they_enclosed() -> None:
    model = regions()
    captured = utc.capture(model, X, verify="full")
    assert sum(bool(info(n).region) for n in captured.graph.nodes) == 4
    with torch.no_grad():
        assert torch.equal(captured(X), model(X))
        assert not torch.is_grad_enabled()


def compiles_regions() -> bool:
    """Whether this torch's compiler takes a graph with an autocast region: 2.11's does not, 2.14's does."""
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    region = graph.call_function(torch.amp.autocast_mode._enter_autocast, ("cpu", torch.bfloat16, True, True))
    y = graph.call_function(torch.matmul, (x, x))
    graph.call_function(torch.amp.autocast_mode._exit_autocast, (region,))
    graph.output(y)
    module = torch.fx.GraphModule(nn.Module(), graph)
    with refused_regions() as refused:
        assert torch.compile(module, backend="eager", fullgraph=True)(X.mT @ X).dtype == torch.bfloat16
    return not refused


@contextmanager
def refused_regions() -> Iterator[list[Exception]]:
    """The error of torch's compiler, if any; 2.11's then leaves autocast on, and an assertion of its own says so."""
    refused: list[Exception] = []
    try:
        yield refused
    except (torch._dynamo.exc.Unsupported, AssertionError) as error:
        assert "autocast" in str(error)
        refused.append(error)
        torch.set_autocast_enabled("cpu", False)


def test_regions_compile_whole_where_torchs_compiler_takes_them_and_else_it_says_so() -> None:
    model = regions()
    compiled = torch.compile(utc.capture(model, X), backend="eager", fullgraph=True)
    expected = model(X)
    with refused_regions() as refused:
        assert torch.equal(compiled(X), expected)
    assert bool(refused) != compiles_regions()


def test_a_tuner_inside_an_autocast_region_runs_there() -> None:
    def forward(self: nn.Module, x: T) -> T:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.linear(torch.relu(self.linear(x)))

    rules = "version: 1\nname: t\nrules:\n  - {name: r, match: {op: linear}, insert: {weight: h, tuner: {kind: lora, r: 2, alpha: 2}}}\n"
    tuned = utc.compile(toys.Calls(forward), rules, (X,))
    region = [n.name for n in tuned.graph.nodes if info(n).region]
    order = [n.name for n in tuned.graph.nodes]
    inside = order[order.index(region[0]) : order.index(region[1])]
    assert all(n.name in inside for n in tuned.graph.nodes if info(n).role == Role.TUNER)


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: torch.fft.ifft(torch.fft.fft(self.linear(x)) * 2j).real,
        lambda self, x: torch.einsum("bi,ji->bj", x, self.linear.weight),
        lambda self, x: torch.nn.functional.linear(x, self.linear.weight.T, self.linear.bias),
        lambda self, x: self.linear(x).view(-1, 2, 2).unflatten(1, (1, 2)).transpose(-1, -2)[:, 0, ..., None],
        lambda self, x: x.argsort(-1).gather(1, torch.zeros_like(x, dtype=torch.long)).float() + self.linear(x),
        lambda self, x: [self.linear(x), {"a": (x + 1, None)}],
    ],
)
def test_functions_of_every_kind(function: object) -> None:
    utc.capture(toys.Calls(function), X, verify="full")  # type: ignore[arg-type]


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_recurrent_layers_are_leaves(cell: type[nn.Module]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell(4, 5, batch_first=True)

        def forward(self, x: T) -> T:
            return self.cell(x)[0]

    captured = utc.capture(Model(), torch.randn(2, 3, 4), verify="full")
    assert sum(n.op == "call_module" for n in captured.graph.nodes) == 1


Pair = namedtuple("Pair", "first second")


@dataclass
class Found:
    logits: T
    extra: tuple[T, ...] | None = None


class Cache:
    """An object that is neither tensor nor container."""

    def __init__(self, keys: T, layers: list[T]) -> None:
        self.keys, self.layers, self.length = keys, layers, 3


def test_outputs_of_any_structure() -> None:
    def forward(self: nn.Module, x: T) -> object:
        y = self.linear(x)
        return Pair(Found(y, (x + 1,)), Cache(y * 2, [x, y]))

    captured = utc.capture(toys.Calls(forward), X, verify="full")
    found = captured(X)
    assert isinstance(found, Pair) and isinstance(found.first, Found) and isinstance(found.second, Cache)
    assert torch.equal(found.second.keys, 2 * found.first.logits) and found.second.length == 3


def test_one_tensor_given_for_two_inputs_is_two_inputs() -> None:
    model = toys.Minus()
    captured = utc.capture(model, (X, X), verify="full")
    y = torch.randn_like(X)
    assert torch.equal(captured(X, y), model(X, y))


def test_a_function_that_is_a_closure_pickles() -> None:
    model = toys.Calls(lambda self, x: torch.nn.functional.max_pool1d(self.linear(x), 2))
    captured = utc.capture(model, X)
    again = pickle.loads(pickle.dumps(captured))
    assert torch.equal(again(X), model(X))


# --- opaque -------------------------------------------------------------------------------------------------------


def test_python_that_depends_on_data_stays_one_node_and_is_named() -> None:
    model = toys.Between(toys.Selects())
    x = torch.randn(6, 4)
    captured = utc.capture(model, x)
    assert [str(n.target) for n in captured.graph.nodes if n.op == "call_module"] == ["before", "inner", "after"]
    (opaque,) = captured.report.opaque
    assert opaque.path == "inner" and "depends on the values" in opaque.reason and "capture_toys.py" in opaque.source
    y = torch.randn(9, 4)
    assert torch.equal(captured(y), model(y))


def test_a_module_given_to_one_call_makes_the_caller_opaque() -> None:
    model = nn.Sequential(nn.Linear(4, 4), toys.ReversibleStack(), nn.Linear(4, 2))
    captured = utc.capture(model, X)
    (opaque,) = captured.report.opaque
    assert opaque.path == "1" and "a ModuleList is given to one call" in opaque.reason
    assert torch.equal(captured(X), model(X)) and captured.report.unreachable == ()


def test_an_opaque_modules_neighbours_can_be_tuned() -> None:
    rules = "version: 1\nname: t\nrules:\n  - {name: r, match: {op: linear}, insert: {weight: h, tuner: {kind: lora, r: 2, alpha: 2}}}\n"
    tuned = utc.compile(toys.Between(toys.Selects()), rules, (torch.randn(6, 4),))
    assert [s.path for s in tuned.sites] == ["before", "after"]


def test_a_scripted_function_is_one_node() -> None:
    model = toys.Between(toys.Scripted())
    captured = utc.capture(model, X)
    assert captured.report.opaque == () and torch.equal(captured(X), model(X))
    assert sum(getattr(n.target, "__name__", "") == "_thrice" for n in captured.graph.nodes) == 1


def test_a_choice_by_values_in_the_root_is_checked_in_every_call() -> None:
    model = toys.Calls(lambda self, x: self.linear(x).relu() if x.sum() > 0 else self.linear(x))
    captured = utc.capture(model, torch.rand(2, 4))
    assert any("the choice at test_capture_any.py" in p for p in captured.report.pinned)
    x = torch.rand(5, 4)
    assert torch.equal(captured(x), model(x))
    with pytest.raises(utc.UtcError, match="it reads False, and read True at capture") as caught:
        captured(-x)
    assert "test_capture_any.py" in str(caught.value)


def test_sizes_that_depend_on_values_are_read_off_the_tensor() -> None:
    def forward(self: nn.Module, x: T) -> T:
        kept = x[x.sum(-1) > 0]
        return self.linear(kept).reshape(kept.shape[0] * 2, 2)

    model = toys.Calls(forward)
    captured = utc.capture(model, torch.randn(6, 4))
    assert captured.report.opaque == ()
    for n in (3, 8):
        x = torch.randn(n, 4)
        assert torch.equal(captured(x), model(x))


def test_an_input_that_holds_sizes() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, patches: T, grid: T) -> T:
            return torch.cat([self.linear(p).mean(0, keepdim=True) for p in patches.split(grid.prod(-1).tolist())])

    model, patches, grid = Packed(), torch.randn(10, 4), torch.tensor([[2, 3], [2, 2]])
    captured = utc.capture(model, (patches, grid))
    assert any(p.startswith("grid: its values") for p in captured.report.pinned)
    other = torch.randn(10, 4)
    assert torch.equal(captured(other, grid), model(other, grid))
    with pytest.raises(utc.UtcError, match="recorded with grid="):
        captured(other, torch.tensor([[2, 2], [2, 3]]))


def test_a_value_that_no_check_could_hold_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(utc.UtcError) as caught:
        utc.capture(toys.Calls(lambda self, x: self.linear(x) * x.max().item()), X)
    assert "depends on the values of tensors" in str(caught.value) and "a submodule" in str(caught.value)


# --- modes --------------------------------------------------------------------------------------------------------


def test_follow_obeys_the_mode_as_the_model_does() -> None:
    model = toys.Follows()
    captured = utc.capture(model, torch.randn(6, 4), base="follow", verify="full")
    assert "in both modes" in captured.report.verified
    assert [o.path for o in captured.report.opaque] == ["path"]
    assert len(captured.report.by_mode) >= 4
    x = torch.randn(6, 4)
    for other in (captured, copy.deepcopy(captured), pickle.loads(pickle.dumps(captured))):
        mine, theirs = other.train(), copy.deepcopy(model).train()
        torch.manual_seed(3)
        found = mine(x)
        torch.manual_seed(3)
        assert torch.equal(found, theirs(x)) and not torch.equal(found, mine(x))
        assert torch.equal(other.eval()(x), other.eval()(x))


def test_follow_updates_batch_norm_and_frozen_does_not() -> None:
    model, x = toys.Follows(), torch.randn(6, 4) + 5
    before = model.norm.running_mean.clone()
    frozen = utc.capture(model, x).train()
    frozen(x)
    assert torch.equal(frozen.norm.running_mean, before)
    follows = copy.deepcopy(utc.capture(model, x, base="follow")).train()
    follows(x)
    assert not torch.equal(follows.norm.running_mean, before) and torch.equal(model.norm.running_mean, before)


def test_a_tuned_model_follows_too() -> None:
    captured = utc.capture(toys.Follows(), torch.randn(6, 4), base="follow")
    rules = "version: 1\nname: t\nrules:\n  - {name: r, match: {op: linear}, insert: {weight: h, tuner: {kind: lora, r: 2, alpha: 2}}}\n"
    tuned = utc.match(captured, rules).apply()
    x = torch.randn(6, 4)
    assert not torch.equal(tuned.train()(x), tuned(x)) and torch.equal(tuned.eval()(x), tuned(x))


# --- what is left alone -------------------------------------------------------------------------------------------


def test_random_numbers_are_left_alone() -> None:
    model, x = toys.Follows(), torch.randn(6, 4)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    utc.capture(model, x, base="follow", verify="full")
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()


def test_attributes_of_the_model_are_passed_through() -> None:
    model = toys.Derives()
    model.config, model.num_classes = {"width": 4}, 4
    captured = utc.capture(model, X)
    for other in (captured, copy.deepcopy(captured), pickle.loads(pickle.dumps(captured))):
        assert other.config == {"width": 4} and other.num_classes == 4
    assert captured.dtype == torch.float32 and captured.device.type == "cpu"
    with pytest.raises(AttributeError):
        _ = captured.nothing_of_the_kind


def test_weights_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    captured = utc.capture(model, X, verify="shapes")
    assert captured.report.operations == 4 and next(captured.parameters()).is_meta
    with pytest.raises(utc.UtcError, match='pass verify="shapes"'):
        utc.capture(model, X)


def test_compiled_and_scripted_models() -> None:
    compiled = torch.compile(toys.Derives(), backend="eager")
    assert torch.equal(utc.capture(compiled, X)(X), compiled(X))
    with pytest.raises(utc.UtcError, match=r"before torch\.jit\.script"):
        utc.capture(_script(nn.Linear(4, 4)), X)


def _script(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(model)


def test_mixed_devices_are_the_models_own_error() -> None:
    with torch.device("meta"):
        second = nn.Linear(4, 4)
    captured = utc.capture(nn.Sequential(nn.Linear(4, 4), second), X, verify="shapes")
    assert captured.report.operations == 4


@dataclass
class Batch:
    """An input that is neither tensor nor container."""

    ids: T
    extra: dict[str, list[T]]
    name: str = "text"


def test_a_dataclass_as_input() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 4)

        def forward(self, batch: Batch) -> T:
            return self.embed(batch.ids) + batch.extra["bias"][0]

    model = Model()
    captured = utc.capture(
        model, (Batch(torch.randint(0, 11, (2, 6)), {"bias": [torch.randn(2, 1, 4)]}),), verify="full"
    )
    other = Batch(torch.randint(0, 11, (5, 3)), {"bias": [torch.randn(5, 1, 4)]})
    assert torch.equal(captured(other), model(other))


def test_a_model_that_refuses_the_examples_values() -> None:
    def forward(self: nn.Module, x: T) -> T:
        torch._check_tensor_all(x < 100)
        return self.linear(x)

    model = toys.Calls(forward)
    utc.capture(model, X, verify="full")
    with pytest.raises(utc.UtcError, match="the model fails on the example inputs"):
        utc.capture(model, X + 200)
