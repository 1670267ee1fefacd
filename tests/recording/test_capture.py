"""A capture computes what the model computes, at any batch, and leaves the model alone."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from support import models as zoo
from torch import nn

import utcompile as utc
from utcompile.graph import info


def snapshot(model: nn.Module) -> dict[str, object]:
    """Everything about a model that a capture might disturb."""
    return {
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "versions": [t._version for t in [*model.parameters(), *model.buffers()]],
        "flags": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) for m in model.modules()],
        "attributes": [sorted(m.__dict__) for m in model.modules()],
        "inplace": [getattr(m, "inplace", None) for m in model.modules()],
        "rng": torch.get_rng_state(),
    }


def assert_same(a: object, b: object) -> None:
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor) and torch.equal(a, b)
    elif isinstance(a, dict):
        assert isinstance(b, dict) and a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    else:
        assert a == b


@pytest.mark.parametrize("kind", zoo.MODELS)
def test_equal_bit_for_bit_at_every_batch(kind: str) -> None:
    model, x = zoo.make(kind)
    captured = utc.capture(model, x)
    for batch in (1, 2, 7):
        y = torch.randn(batch, *x.shape[1:])
        with torch.no_grad():
            assert torch.equal(captured(y), model(y))


@pytest.mark.parametrize("kind", zoo.MODELS)
def test_the_model_stays_as_it_was(kind: str) -> None:
    model, x = zoo.make(kind)
    model.train()
    before = snapshot(model)
    captured = utc.capture(model, x, verify="full")
    assert_same(before, snapshot(model))
    captured.requires_grad_(True).half()
    assert_same(before, snapshot(model))


def test_weights_are_shared_and_names_kept() -> None:
    model, x = zoo.make("vit")
    captured = utc.capture(model, x)
    assert captured.state_dict().keys() == model.state_dict().keys()
    mine, theirs = dict(captured.named_parameters()), dict(model.named_parameters())
    assert {n: p.data_ptr() for n, p in mine.items()} == {n: p.data_ptr() for n, p in theirs.items()}
    assert not any(p.requires_grad for p in mine.values())


def test_frozen_batch_norm_and_dropout_stay_put_in_train_mode() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    x = torch.randn(2, 3, 8, 8)
    captured = utc.capture(model, x).train()
    first = captured(x)
    assert captured.training and torch.equal(first, captured(x))
    assert captured.get_buffer("1.num_batches_tracked") == 0


def test_nodes_carry_scope_source_and_shape() -> None:
    model, x = zoo.make("vit")
    captured = utc.capture(model, x)
    node = next(n for n in captured.graph.nodes if n.name == "blocks_1_attn_reshape")
    assert [f.path for f in info(node).origin.scope] == ["", "blocks", "blocks.1", "blocks.1.attn"]
    assert info(node).origin.source.startswith("attention.py:")
    assert str(info(node).value).startswith("[B, ")


@pytest.mark.parametrize("kind", ["vit", pytest.param("efficientnet", marks=pytest.mark.full)])
def test_deepcopy_and_pickle_keep_graph_and_meta(kind: str) -> None:
    model, x = zoo.make(kind)
    captured = utc.capture(model, x)
    for other in (copy.deepcopy(captured), pickle.loads(pickle.dumps(captured))):
        assert isinstance(other, utc.CapturedModule)
        assert [n.name for n in other.graph.nodes] == [n.name for n in captured.graph.nodes]
        assert [info(n).value for n in other.graph.nodes] == [info(n).value for n in captured.graph.nodes]
        assert other.report == captured.report and other.batch_inputs == captured.batch_inputs
        assert other.state_dict().keys() == captured.state_dict().keys()
        with torch.no_grad():
            assert torch.equal(other(x), captured(x))
    assert next(copy.deepcopy(captured).parameters()).data_ptr() != next(captured.parameters()).data_ptr()


def test_torch_compile_full_graph() -> None:
    model, x = zoo.make("vit")
    captured = utc.capture(model, x)
    compiled = torch.compile(captured, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))


class Nested(nn.Module):
    """Nested inputs and outputs, a tied weight, a shared layer, a tensor made in forward, an attribute tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.shared = nn.Linear(6, 6)
        self.offset = torch.arange(6.0)

    def forward(self, batch: dict[str, torch.Tensor], flags: tuple[torch.Tensor, bool] | None = None) -> object:
        h = self.embed(batch["ids"]) + self.offset + torch.arange(6)
        h = self.shared(self.shared(h))
        if flags is not None and flags[1]:
            h = h * flags[0]
        return {"logits": self.head(h), "pair": (h.mean(1), [h])}


def test_nested_inputs_and_outputs_shared_and_tied() -> None:
    model = Nested().eval()
    ids, mask = torch.randint(0, 11, (2, 5)), torch.ones(2, 1, 6)
    captured = utc.capture(model, {"batch": {"ids": ids}, "flags": (mask, True)}, verify="full")
    found = captured({"ids": ids}, (mask, True))
    assert torch.equal(found["logits"], model({"ids": ids}, (mask, True))["logits"])
    assert len(list(captured.parameters())) == len(list(model.parameters()))
    assert sum(n.op == "call_module" and n.target == "shared" for n in captured.graph.nodes) == 2


class SameTensor(nn.Module):
    """Operations that return their own input, between a value and its later reader."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.norm = nn.Dropout(0.1), nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.norm(self.drop(x).to(torch.float32).contiguous())
        return x + inner


def test_an_operation_that_returns_its_input_gets_a_value_of_its_own() -> None:
    captured = utc.capture(SameTensor().eval(), torch.randn(2, 4))
    add = next(n for n in captured.graph.nodes if n.name == "add")
    assert add.args[0].op == "placeholder"


class InPlace(nn.Module):
    """Writes whose memory nothing else reads, and one whose memory is read."""

    def __init__(self, aliased: bool) -> None:
        super().__init__()
        self.act, self.fc, self.aliased = nn.ReLU(inplace=True), nn.Linear(4, 4), aliased

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.fc(x)
        view = h[:, :2]
        h = self.act(h)
        h += 1
        h.mul_(2)
        if self.aliased:
            view.add_(5)
        return h


@pytest.mark.parametrize("aliased", [False, True])
def test_writes_become_functional_or_barriers(aliased: bool) -> None:
    model, x = InPlace(aliased).eval(), torch.randn(2, 4)
    captured = utc.capture(model, x, verify="full")
    assert bool(captured.report.barriers) == aliased
    assert model.act.inplace and captured.get_submodule("act").inplace
    assert any(info(n).mutates for n in captured.graph.nodes) == aliased


def test_a_write_of_a_module_that_is_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.fc = nn.ReLU(inplace=True), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.fc(self.act(self.fc(x))))

    captured = utc.capture(Twice().eval(), torch.randn(2, 4), verify="full")
    assert captured.report.barriers == () and captured.get_submodule("act").inplace


ADAPTERS = "version: 1\nname: t\nrules:\n  - name: r\n    match: {op: OP}\n    insert: {parallel: x -> h, tuner: {kind: adapter, dim: 2}}\n"


def test_writes_stay_in_place_only_where_no_tuner_reads_what_they_overwrite() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(inplace=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.b(self.act(self.a(x)))
            y += x
            return y.mul_(2)

    model, x = Residual(), torch.randn(3, 4)
    captured = utc.capture(model, x, verify="full")
    assert captured.act.inplace
    assert {"add_", "mul_"} <= {getattr(n.target, "__name__", n.target) for n in captured.graph.nodes}
    tuned = utc.match(captured, ADAPTERS.replace("OP", "relu")).apply()  # reads what the ReLU overwrote
    assert not tuned.act.inplace and captured.act.inplace
    beside = utc.match(captured, ADAPTERS.replace("OP", "linear")).apply()  # adds to it before
    assert beside.act.inplace
    for module in (tuned, beside):
        torch.nn.init.normal_(next(p for n, p in module.named_parameters() if n.endswith("up.weight")))
        module(x).sum().backward()
        with utc.disable_tuners(module):
            assert torch.equal(module(x), model(x))
        folded, _ = utc.fold(module)
        assert torch.allclose(folded(x), module(x), atol=1e-5)


def test_a_plan_never_crosses_a_barrier() -> None:
    captured = utc.capture(InPlace(True).eval(), torch.randn(2, 4))
    rules = "version: 1\nname: t\nrules:\n  - name: r\n    match: {op: relu}\n    insert: {sequential: h, tuner: {kind: adapter}}\n"
    with pytest.raises(utc.UtcError, match="overwritten in place later"):
        utc.match(captured, rules)


class Cached(nn.Module):
    """Keeps a tensor on itself after an eager run in eval, as LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(4))
        self.cache: dict[str, torch.Tensor] = {}

    def train(self, mode: bool = True) -> Cached:
        if mode:
            self.cache = {}
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if "b" not in self.cache:
            self.cache["b"] = self.bias * 2
        return x + self.cache["b"]


def test_a_cache_from_an_eager_run_is_cleared_on_the_copy_alone() -> None:
    model = Cached().eval()
    model(torch.randn(2, 4))
    kept = model.cache["b"]
    captured = utc.capture(model, torch.randn(2, 4))
    assert captured.report.unreachable == () and model.cache["b"] is kept


class BatchSizes(nn.Module):
    """The batch in a reshape, in a product, and in a sum."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        y = x.reshape(b * n, c)
        return torch.cat([y, y.new_zeros(2 * b + 1, c)]).reshape(b * n + 2 * b + 1, c)


def test_integers_that_follow_the_batch_become_expressions_of_it() -> None:
    model = BatchSizes()
    captured = utc.capture(model, torch.randn(1, 3, 4))
    for batch in (1, 2, 9):
        x = torch.randn(batch, 3, 4)
        assert torch.equal(captured(x), model(x))


class Squared(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(x.shape[0] ** 2)


class Varying(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) if x.shape[0] > 2 else torch.tanh(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Varying(), "different operations in different calls"),
    ],
)
def test_a_batch_that_the_model_pins(model: nn.Module, message: str) -> None:
    captured = utc.capture(model, torch.randn(2, 4))
    (pinned,) = captured.report.pinned
    assert pinned.startswith("B: ") and message in pinned and "test_capture.py:" in pinned
    x = torch.randn(2, 4)
    assert torch.equal(captured(x), model(x))
    with pytest.raises(utc.UtcError, match=r"recorded with x\.shape\[0\]=2, not 3"):
        captured(torch.randn(3, 4))
    with pytest.raises(utc.UtcError, match=message) as caught:
        utc.capture(model, torch.randn(2, 4), dynamic=["x"])
    assert "test_capture.py:" in str(caught.value)


def test_static_capture_where_the_batch_cannot_vary() -> None:
    captured = utc.capture(Squared(), torch.randn(3, 4), dynamic=())
    assert captured(torch.randn(3, 4)).shape == (9,) and captured.batch_inputs == ()


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ((), "do not fit the model's forward"),
        ((torch.randn(2, 5),), r"forward failed on inputs input: \[2, 5\]"),
        ({"x": 3}, "do not fit the model's forward"),
        (3, "must be a tuple, a dict or a tensor, not int"),
        ((3,), "contain no tensor"),
    ],
)
def test_examples_that_do_not_fit(example: object, message: str) -> None:
    with pytest.raises(utc.UtcError, match=message):
        utc.capture(nn.Linear(4, 2), example)  # type: ignore[arg-type]


def test_what_is_no_model_or_is_captured_already() -> None:
    captured = utc.capture(nn.Linear(4, 2), torch.randn(2, 4))
    with pytest.raises(utc.UtcError, match="already"):
        utc.capture(captured, torch.randn(2, 4))
    with pytest.raises(utc.UtcError, match=r"takes an nn\.Module, not str"):
        utc.capture("resnet18", torch.randn(2, 4))  # type: ignore[arg-type]
    with pytest.raises(utc.UtcError, match="dynamic names 'y'"):
        utc.capture(nn.Linear(4, 2), torch.randn(2, 4), dynamic=["y"])


def test_verification_catches_a_model_that_is_not_deterministic() -> None:
    calls = iter(range(100))  # an iterator shows no state that could be compared or put back

    class Drifting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + float(max(next(calls) - 3, 0))  # the recordings see 0, the proof sees more, and more each time

    with pytest.raises(utc.UtcError, match=r"differs from the model's by .*, and the model differs from itself"):
        utc.capture(Drifting(), torch.randn(2, 4))


def test_a_part_of_a_reserved_name_is_refused() -> None:
    model = nn.Module()
    model.report = nn.Linear(4, 4)
    with pytest.raises(utc.UtcError, match="has a part named 'report'"):
        utc.capture(model, torch.randn(2, 4))


# --- lengths that masks have --------------------------------------------------------------------------------------------


class Masked(nn.Module):
    """The mean of what a mask leaves, along any one axis."""

    def __init__(self, axis: int, features: int = 0) -> None:
        super().__init__()
        self.axis = axis
        self.linear = nn.Linear(features, 3) if features else nn.Identity()

    def forward(self, sound: torch.Tensor, padding_mask: torch.Tensor) -> torch.Tensor:
        weight = padding_mask.to(sound.dtype)
        while weight.dim() < sound.dim():
            weight = weight.unsqueeze(1 if self.axis == 2 else -1)
        return self.linear((sound * weight).sum(self.axis) / weight.sum(self.axis))


def _covered(shape: tuple[int, ...], axis: int) -> dict[str, torch.Tensor]:
    mask = torch.ones(shape[0], shape[axis], dtype=torch.long)
    mask[0, shape[axis] // 2 :] = 0
    return {"sound": torch.randn(*shape), "padding_mask": mask}


@pytest.mark.parametrize(
    ("model", "shape", "other", "axis"),
    [
        (Masked(1), (2, 9), (3, 14), 1),
        (Masked(1, features=4), (2, 9, 4), (1, 12, 4), 1),
        (Masked(2, features=4), (2, 4, 9), (3, 4, 5), 2),
    ],
)
def test_the_length_of_a_mask_is_that_of_what_it_covers(
    model: nn.Module, shape: tuple[int, ...], other: tuple[int, ...], axis: int
) -> None:
    captured = utc.capture(model, _covered(shape, axis))
    call = _covered(other, axis)
    assert torch.equal(captured(**call), model(**call))


def test_a_length_of_ids_or_of_two_axes_is_no_length_of_features() -> None:
    square = utc.capture(Masked(1, features=9), _covered((2, 9, 9), 1))  # either axis may be the length
    with pytest.raises(utc.UtcError, match=r"sound\.shape\[1\]=9, not 5"):
        square(**_covered((2, 5, 9), 1))

    class Both(nn.Module):
        def forward(self, ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
            return ids.sum(1) + table.sum(1)

    model = Both()
    captured = utc.capture(model, (torch.ones(2, 6, dtype=torch.long), torch.randn(2, 6)))
    call = (torch.ones(3, 8, dtype=torch.long), torch.randn(3, 6))
    assert torch.equal(captured(*call), model(*call))


# --- a graph of one dtype ------------------------------------------------------------------------------------------------


LORA = (
    "version: 1\nname: t\nrules:\n  - {name: r, match: {op: linear}, insert: {weight: h, tuner: {kind: lora, r: 2}}}\n"
)


class ChoosesByDtype(nn.Module):
    """T5's norm: other operations in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        return y.clamp(-100, 100) if self.linear.weight.dtype in (torch.float16, torch.bfloat16) else y * 2 + 1


class ChoosesByDtypeOfInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).relu() if x.dtype == torch.float32 else self.linear(x)


@pytest.mark.parametrize("kind", [ChoosesByDtype, ChoosesByDtypeOfInput])
def test_a_graph_of_one_dtype_is_cast_to_no_other(kind: type[nn.Module]) -> None:
    model = kind().eval()
    captured = utc.capture(model, torch.randn(2, 4))
    assert any(p.startswith("dtype") for p in captured.report.pinned)
    tuned = utc.match(captured, LORA).apply()
    for module in (captured, pickle.loads(pickle.dumps(captured)), tuned, nn.Sequential(tuned)):
        with pytest.raises(utc.UtcError, match="has weights in float32 alone") as caught:
            module.bfloat16()
        assert "why: dtype: " in str(caught.value) and "capture it again" in str(caught.value)
        assert all(p.dtype == torch.float32 for p in module.parameters())
        module.float().to("cpu")
    half = utc.capture(kind().eval().bfloat16(), torch.randn(2, 4, dtype=torch.bfloat16))
    assert half(torch.randn(3, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_graph_that_follows_its_weights_is_cast() -> None:
    captured = utc.capture(nn.Sequential(nn.Linear(4, 4), nn.GELU()), torch.randn(2, 4))
    assert captured.bfloat16()(torch.randn(3, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
