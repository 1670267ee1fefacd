"""Parts of models that a graph has to spell: named tuples, reserved names, scripted parts, operators, other calls."""

from __future__ import annotations

import collections
import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import utcompile as utc
from utcompile.recording.fixed import FixedSizes

T = torch.Tensor
X = torch.randn(2, 5)
SEQUENCE = torch.randn(2, 6, 8)
Pair = collections.namedtuple("Pair", "first second")


def scripted(module: Any, *example: T) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still met
        return torch.jit.trace(module, example) if example else torch.jit.script(module)


# --- named tuples -------------------------------------------------------------------------------------------------


class Packs(nn.Module):
    def __init__(self, cell: Any) -> None:
        super().__init__()
        self.project, self.rnn, self.head = nn.Linear(5, 8), cell(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: T, lengths: T) -> T:
        packed = pack_padded_sequence(self.project(x), lengths, batch_first=True, enforce_sorted=False)
        y, _ = self.rnn(packed)
        found: T = self.head(y.data)
        return found


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_packed_sequences_between_layers(cell: Any) -> None:
    model = Packs(cell).eval().requires_grad_(False)
    captured = utc.capture(model, (torch.randn(2, 7, 5), torch.tensor([7, 4])))
    for lengths in ([7, 4], [5, 6], [3, 3]):
        x, n = torch.randn(2, max(lengths), 5), torch.tensor(lengths)
        if max(lengths) == 7:
            assert torch.equal(captured(x, n), model(x, n))
        else:
            with pytest.raises(utc.UtcError, match=r"x\.shape\[1\]=7"):
                captured(x, n)
    assert torch.equal(
        captured(torch.ones(2, 7, 5), torch.tensor([2, 7])), model(torch.ones(2, 7, 5), torch.tensor([2, 7]))
    )


def test_a_packed_sequence_as_input() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(5, 8), nn.Linear(8, 3)

        def forward(self, packed: Any) -> T:
            found: T = self.head(self.rnn(packed)[0].data)
            return found

    model = Reads().eval().requires_grad_(False)
    packed = pack_sequence([torch.randn(4, 5), torch.randn(3, 5)])
    assert torch.equal(utc.capture(model, (packed,))(packed), model(packed))


def test_named_tuples_as_inputs_and_between_modules() -> None:
    class Opaque(nn.Module):
        def forward(self, pair: Any) -> T:
            found: T = pair.first if pair.second.sum() > 0 else pair.second
            return found

    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.choose, self.head = nn.Linear(5, 5), Opaque(), nn.Linear(5, 5)

        def forward(self, pair: Any) -> Any:
            made = Pair(self.linear(pair.first), pair.second)
            return Pair(self.head(self.choose(made)), made.second)

    model, pair = Pairs().eval().requires_grad_(False), Pair(X, X.abs())
    found, expected = utc.capture(model, (pair,))(pair), model(pair)
    assert type(found) is Pair and torch.equal(found.first, expected.first)


def test_the_named_tuples_of_torch() -> None:
    class Largest(nn.Module):
        def forward(self, found: Any) -> T:
            best: T = found.values if found.values.sum() > 0 else -found.values
            return best

    class Reduces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.largest, self.head = nn.Linear(5, 9), Largest(), nn.Linear(2, 3)

        def forward(self, x: T) -> T:
            found: T = self.head(self.largest(torch.topk(self.linear(x), 2)))
            return found

    model = Reduces().eval().requires_grad_(False)
    captured = utc.capture(model, X)
    assert [o.path for o in captured.report.opaque] == ["largest"]
    for x in (X, torch.randn(5, 5)):
        assert torch.equal(captured(x), model(x))


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [("class", "box"), ("in", "out"), ("None", "True"), ("a-b", "3x3"), ("lambda", "self")]
)
def test_module_dicts_with_words_of_python(names: tuple[str, str]) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.heads = nn.Linear(5, 8), nn.ModuleDict({n: nn.Linear(8, 3) for n in names})

        def forward(self, x: T) -> dict[str, T]:
            return {n: head(self.body(x).relu()) for n, head in self.heads.items()}

    model = Heads().eval().requires_grad_(False)
    captured = utc.capture(model, X)
    tuned = utc.match(captured, "lora/all_linear").apply().eval()
    folded, _ = utc.fold(tuned)
    assert captured.state_dict().keys() == model.state_dict().keys() == folded.state_dict().keys()
    for module in (captured, copy.deepcopy(captured), pickle.loads(pickle.dumps(captured)), tuned, folded):
        assert all(torch.equal(y, model(X)[n]) for n, y in module(X).items())


def test_parameters_with_words_of_python() -> None:
    class Holds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = nn.ParameterDict({"if": torch.randn(5), "not": torch.randn(5)})

        def forward(self, x: T) -> T:
            return x * self.held["if"] + self.held["not"]

    model = Holds()
    assert torch.equal(utc.capture(model, X)(X), model(X))


def test_inputs_named_like_operations() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 5)

        def forward(self, pad: T, relu: T, getattr: T, torch_: T) -> T:
            y = nn.functional.relu(nn.functional.pad(self.linear(pad), (1, 1)))
            return y + relu.mean() + getattr.sum() + torch_.T.sum()

    model = Named().eval().requires_grad_(False)
    given = (X, X + 1, X + 2, X + 3)
    assert torch.equal(utc.capture(model, given)(*given), model(*given))


def test_an_input_named_by_a_word_of_python_is_refused() -> None:
    class Reads(nn.Module):
        def forward(self, **given: T) -> T:
            return given["in"] * 2

    with pytest.raises(utc.UtcError, match="an example input is named 'in', a word of Python"):
        utc.capture(Reads(), {"in": X})


# --- scripted parts -----------------------------------------------------------------------------------------------


class Between(nn.Module):
    """A part between two layers, and one that nothing calls."""

    def __init__(self, part: Any) -> None:
        super().__init__()
        self.before, self.part, self.after = nn.Linear(5, 8), part, nn.Linear(8, 3)
        self.unused = scripted(nn.Linear(2, 2))

    def forward(self, x: T) -> T:
        found: T = self.after(self.part(self.before(x)))
        return found


def inner() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.5)).eval()


@pytest.mark.parametrize("base", ["frozen", "follow"])
@pytest.mark.parametrize("traced", [True, False])
def test_a_scripted_part_is_an_opaque_node(traced: bool, base: Any) -> None:
    part = scripted(inner(), torch.randn(2, 8)) if traced else scripted(inner())
    model = Between(part).eval()
    captured = utc.capture(model, X, base=base)
    assert [o.path for o in captured.report.opaque] == ["part"] and captured.report.state == ()
    assert captured.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        next(model.part.parameters()).add_(1)  # the memory is shared, as that of other modules
        expected = model(X)
        assert torch.equal(captured(X), expected) and torch.equal(copy.deepcopy(captured)(X), expected)
    assert all(p.requires_grad for p in model.parameters()) and not any(p.requires_grad for p in captured.parameters())
    tuned = utc.match(captured, "lora/all_linear").apply().eval()
    assert len(tuned.sites) == 1 and torch.equal(tuned(X), captured(X))
    tuned(X).sum().backward()
    folded, _ = utc.fold(tuned)
    assert torch.allclose(folded(X), tuned(X), atol=1e-6)  # float32 sums in another order


def test_a_scripted_model_is_refused() -> None:
    with pytest.raises(utc.UtcError, match="its Python code is gone"):
        utc.capture(scripted(inner()), torch.randn(2, 8))


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb"])
@pytest.mark.parametrize("table", [nn.ModuleDict, nn.ParameterDict])
def test_a_name_that_no_code_can_have_is_refused(table: Any, name: str) -> None:
    model = nn.Module()
    model.parts = table({name: nn.Linear(4, 4) if table is nn.ModuleDict else nn.Parameter(torch.ones(4))})
    with pytest.raises(utc.UtcError, match="a part of the model has the name") as caught:
        utc.capture(model, torch.randn(2, 4))
    assert "parts" in str(caught.value.where)


# --- operators that take functions --------------------------------------------------------------------------------


def conditional(y: T) -> T:
    found: T = torch.cond(y.sum() > 0, lambda z: z.relu(), lambda z: z * 2, (y,))
    return found


def tangent(y: T) -> T:
    found: T = torch.func.jvp(torch.sin, (y,), (torch.ones_like(y),))[1]
    return found


def gradient(y: T) -> T:
    found: T = torch.func.grad(lambda z: z.sin().sum())(y)
    return found


def pullback(y: T) -> T:
    found: T = torch.func.vjp(torch.sin, y)[1](torch.ones_like(y))[0]
    return found


OPERATORS = {
    "cond": conditional,
    "vmap": torch.vmap(lambda r: r / r.norm()),
    "jvp": tangent,
    "grad": gradient,
    "vjp": pullback,
}


class Runs(nn.Module):
    def __init__(self, function: Callable[[T], T]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: T) -> T:
        return self.function(x)


class Around(nn.Module):
    def __init__(self, function: Callable[[T], T]) -> None:
        super().__init__()
        self.before, self.after, self.function = nn.Linear(8, 8), nn.Linear(8, 3), function

    def forward(self, x: T) -> T:
        found: T = self.after(self.function(self.before(x)))
        return found


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_in_the_root_is_named(name: str) -> None:
    with pytest.raises(utc.UtcError, match=f"torch's {name} takes functions") as caught:
        utc.capture(Around(OPERATORS[name]).eval(), SEQUENCE)
    assert caught.value.fix == "put that call into a submodule, which stays one node"
    assert "test_parts.py" in str(caught.value.where)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # jvp's own decompositions are scripted
@pytest.mark.parametrize("name", OPERATORS)
def test_in_a_submodule_it_is_one_node(name: str) -> None:
    model = Around(Runs(OPERATORS[name])).eval().requires_grad_(False)
    captured = utc.capture(model, SEQUENCE)
    assert [o.path for o in captured.report.opaque] == ["function"]
    if torch.__version__ < "2.12":  # cond that ran under a dispatch mode fails there until then: docs/capture.md
        torch._dynamo.reset()
    for x in (SEQUENCE, torch.randn(5, 6, 8)):
        assert torch.equal(captured(x), model(x))


# --- gradients and their modes ------------------------------------------------------------------------------------


class Differentiates(nn.Module):
    """A gradient in forward, as an energy model's forces."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5)

    def forward(self, x: T) -> T:
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            (found,) = torch.autograd.grad(self.linear(z).pow(2).sum(), z)
        return found


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("verify", ["values", "full", "shapes"])
def test_a_gradient_inside_forward(verify: Any, enabled: bool) -> None:
    model = Differentiates().eval()
    with torch.set_grad_enabled(enabled):
        captured = utc.capture(model, X, verify=verify)
    for mode in (True, False):
        with torch.set_grad_enabled(mode):
            assert torch.equal(captured(X), model(X))


class Modes(nn.Module):
    """Regions in one another, each way of writing them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(5, 5), how

    def forward(self, x: T) -> tuple[T, ...]:
        y = self.linear(x)
        if self.how == "nested":
            with torch.no_grad():
                a = y * 2
                with torch.enable_grad():
                    b = y * 3
                c = y * 5
        elif self.how == "twice":
            with torch.enable_grad():
                with torch.enable_grad():
                    a = y * 2
                b = y * 3
            c = y * 5
        elif self.how == "set":
            with torch.set_grad_enabled(False):
                a = y * 2
            b = c = y * 3
        else:
            a, b, c = torch.no_grad()(lambda: y * 2)(), torch.enable_grad()(lambda: y * 5)(), y
        return a, b, c, y * 7


@pytest.mark.parametrize("how", ["nested", "twice", "set", "decorator"])
@pytest.mark.parametrize("at_capture", [True, False])
@pytest.mark.parametrize("in_call", [True, False])
def test_regions_are_the_models_in_whatever_mode(how: str, at_capture: bool, in_call: bool) -> None:
    model, x = Modes(how).eval(), X.clone().requires_grad_()
    with torch.set_grad_enabled(at_capture):
        captured = utc.capture(model, X, verify="shapes")
    with torch.set_grad_enabled(in_call):
        assert [y.requires_grad for y in captured(x)] == [y.requires_grad for y in model(x)]
        assert torch.is_grad_enabled() is in_call


# --- other calls --------------------------------------------------------------------------------------------------


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5)

    def forward(self, x: T, mask: T | None = None, scale: float = 1.0) -> T:
        y = self.linear(x) * scale
        return y if mask is None else y * mask


@pytest.mark.parametrize("way", [lambda c: c, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_an_optional_input_first_given_in_a_call(way: Callable[[Any], Any]) -> None:
    model = Optional().eval().requires_grad_(False)
    captured = way(utc.capture(model, (X,)))
    for args, kwargs in (((X,), {}), ((X, None), {}), ((X,), {"mask": None, "scale": 1.0})):
        assert torch.equal(captured(*args, **kwargs), model(X))
    for args, kwargs, name in (((X, X), {}, "mask"), ((X,), {"mask": X}, "mask"), ((X, None, 2.0), {}, "scale")):
        with pytest.raises(utc.UtcError, match=f"recorded without '{name}', and the call gives it") as caught:
            captured(*args, **kwargs)
        assert caught.value.fix == f"capture it again with '{name}' in the example inputs"


@pytest.mark.parametrize(("args", "kwargs"), [((X,), {"z": 1}), ((), {}), ((X, None, 1.0, 4), {})])
def test_a_call_that_does_not_fit(args: Any, kwargs: Any) -> None:
    captured = utc.capture(Optional().eval(), (X,))
    with pytest.raises(utc.UtcError, match="the call does not fit the captured model's inputs"):
        captured(*args, **kwargs)


@pytest.mark.parametrize("example", [torch.randn(0, 5), torch.randn(0, 3, 5)])
def test_an_example_without_rows(example: T) -> None:
    model = nn.Linear(5, 5).eval()
    captured = utc.capture(model, (example,))
    for rows in (0, 1, 4):
        x = torch.randn(rows, *example.shape[1:])
        assert torch.equal(captured(x), model(x))


def test_an_example_of_no_tokens() -> None:
    model, sizes = nn.Embedding(4, 4).eval(), {"input": {0: "B", 1: "L"}}
    captured = utc.capture(model, (torch.zeros(2, 0, dtype=torch.long),), dynamic=sizes)
    for length in (0, 3):
        ids = torch.randint(0, 4, (3, length))
        assert torch.equal(captured(ids), model(ids))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_subclasses_of_tensors_as_inputs() -> None:
    class Plain(T):
        pass

    class Dispatching(T):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return super().__torch_function__(func, types, args, kwargs or {})

    model = Optional().eval().requires_grad_(False)
    for kind in (Plain, Dispatching):
        assert torch.equal(utc.capture(model, (X.as_subclass(kind),))(X), model(X))
    assert torch.equal(utc.capture(model, (nn.Parameter(X),))(X), model(X))


# --- sizes that were not declared ---------------------------------------------------------------------------------


def test_another_size_than_the_examples_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval().requires_grad_(False)
    captured = utc.capture(model, torch.randn(2, 3, 16, 16))
    for module in (captured, copy.deepcopy(captured), pickle.loads(pickle.dumps(captured))):
        assert module(torch.randn(5, 3, 16, 16)).shape == (5, 4, 14, 14)
        with pytest.raises(utc.UtcError, match=r"recorded with input\.shape\[2\]=16, not 20") as caught:
            module(torch.randn(2, 3, 20, 16))
        assert 'dynamic={"input": {0: "B", 2: "S"}}' in str(caught.value)
    dynamic = utc.capture(model, torch.randn(2, 3, 16, 16), dynamic={"input": {0: "B", 2: "H", 3: "W"}})
    x = torch.randn(1, 3, 20, 31)
    assert torch.equal(dynamic(x), model(x))


def test_another_rank_or_no_tensor_is_named() -> None:
    captured = utc.capture(nn.Linear(5, 5), X)
    with pytest.raises(utc.UtcError, match="input of 2 dimensions, not 3"):
        captured(X[None])
    with pytest.raises(utc.UtcError, match="input must be a tensor, as at capture, and not str"):
        captured("x")


class Unread(nn.Module):
    """Whether its second input is there, and as long as the first, decides; its values are never read."""

    def forward(self, x: torch.Tensor, extra: torch.Tensor | None = None) -> torch.Tensor:
        if extra is None:
            return x
        return x * 2 if extra.shape[0] == x.shape[0] else x * 3


def test_an_input_that_nothing_reads_is_there_in_every_call_and_as_long_as_the_others() -> None:
    model, x = Unread(), torch.randn(4, 3)
    captured = utc.capture(model, (x, torch.randn(4)))
    assert torch.equal(captured(x[:2], torch.randn(2)), model(x[:2], torch.randn(2)))
    for other in (None, 3, [torch.randn(4)]):
        with pytest.raises(utc.UtcError, match="extra must be a tensor, as at capture"):
            captured(x, other)
    with pytest.raises(utc.UtcError, match=r"extra\.shape\[0\] is 5, and x\.shape\[0\] is 4"):
        captured(x, torch.randn(5))
    with pytest.raises(utc.UtcError, match="x must be a tensor, as at capture"):
        captured(None, torch.randn(5))
    scalar = utc.capture(model, (x, torch.tensor(2).expand(4)), dynamic={})
    with pytest.raises(utc.UtcError, match="extra must be a tensor"):
        scalar(x, None)


def test_sizes_of_one_name_are_equal_in_one_input_too() -> None:
    class Square(nn.Module):
        def forward(self, pairs: torch.Tensor) -> torch.Tensor:
            return pairs * 2 if pairs.shape[1] == pairs.shape[2] else pairs * 3

    captured = utc.capture(Square(), torch.randn(2, 6, 6), dynamic={"pairs": {0: "B", 1: "N", 2: "N"}})
    x = torch.randn(3, 5, 5)
    assert torch.equal(captured(x), x * 2)
    with pytest.raises(utc.UtcError, match=r"pairs\.shape\[2\] is 5, and pairs\.shape\[1\] is 4"):
        captured(torch.randn(3, 4, 5))


def test_a_batch_that_is_no_batch_is_named() -> None:
    class First(nn.Module):  # sequence first, in a size that forward fixes
        def forward(self, x: T) -> T:
            return x.reshape(7, 4, 2, 4).sum(0)

    captured = utc.capture(First(), torch.randn(7, 4, 8))
    with pytest.raises(utc.UtcError, match=r"x\.shape\[1\]=4, not 5"):
        captured(torch.randn(7, 5, 8))


def test_sizes_inside_containers_are_named() -> None:
    class Reads(nn.Module):
        def forward(self, batch: dict[str, T]) -> T:
            return batch["a"] + batch["b"].sum()

    captured = utc.capture(Reads(), ({"a": X, "b": torch.randn(3)},))
    with pytest.raises(utc.UtcError, match=r"batch\['b'\]\.shape\[0\]=3, not 4"):
        captured({"a": X, "b": torch.randn(4)})


def test_the_check_survives_compilation() -> None:
    compiled = torch.compile(utc.capture(nn.Linear(5, 5), X), backend="eager", fullgraph=True)
    assert compiled(torch.randn(7, 5)).shape == (7, 5)
    with pytest.raises(Exception):  # noqa: B017 - under fullgraph the compiler's own error, which shows the check's
        compiled(torch.randn(7, 6))


def test_a_check_reads_sizes_alone() -> None:
    check = FixedSizes("x", 2, ((1, 5),))
    check(torch.empty(3, 5, device="meta"))  # which has no values


# --- many layers --------------------------------------------------------------------------------------------------


@pytest.mark.full  # fold and match grow faster than the number of layers
def test_more_layers_in_a_row_than_python_recurses() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(1200)), nn.Linear(2, 2)).eval().requires_grad_(False)
    captured = utc.capture(model, torch.randn(2, 2), dynamic=(), verify="shapes")
    rules = "version: 1\nname: r\nrules:\n  - {name: n, match: 'h = linear(x)', select: {last: 1}, insert: {weight: h, tuner: {kind: lora, r: 1}}}\n"
    tuned = utc.match(captured, rules).apply().eval()
    folded, _ = utc.fold(pickle.loads(pickle.dumps(tuned)))
    x = torch.randn(2, 2)
    assert torch.allclose(folded(x), model(x))
    assert torch.equal(copy.deepcopy(captured)(x), captured(x)) and str(captured)
