"""What a capture is compared with: the user's own model, called as the user calls it."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import utcompile as utc
from utcompile.recording.mode import in_mode

T = torch.Tensor
X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Linear(nn.Module):
    """One layer, and a factor that hooks and subclasses use."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.factor = 2.0

    def forward(self, x: T, y: T | None = None) -> T:
        return self.linear(x) if y is None else self.linear(x) - y


# --- as the user calls it ------------------------------------------------------------------------------------------------


def test_a_pre_hook_on_the_root_gets_positional_inputs() -> None:
    model = Linear().eval()
    model.register_forward_pre_hook(lambda module, args: (args[0] * 3, *args[1:]))
    captured = utc.capture(model, (X,))
    assert torch.equal(captured(X), model(X)) and not torch.equal(captured(X), model.linear(X))
    both = utc.capture(model, (X, X + 1), verify="full")
    assert torch.equal(both(X, X), model(X, X))


def test_a_pre_hook_on_the_root_gets_keywords() -> None:
    model = Linear().eval()
    model.register_forward_pre_hook(lambda m, args, kwargs: (args, {"x": kwargs["x"] * 3}), with_kwargs=True)
    captured = utc.capture(model, {"x": X})
    assert torch.equal(captured(x=X), model(x=X))


def test_a_forward_hook_on_the_root() -> None:
    model = Linear().eval()
    model.register_forward_hook(lambda module, args, out: out * args[0].mean())
    captured = utc.capture(model, X, verify="full")
    assert torch.equal(captured(X + 1), model(X + 1))


def test_one_argument_by_position_and_one_left_out() -> None:
    model = nn.MultiheadAttention(4, 2, batch_first=True).eval()
    q = torch.randn(2, 3, 4)
    captured = utc.capture(model, (q, q, q))
    assert torch.equal(captured(q, q, q)[0], model(q, q, q)[0]) or torch.allclose(
        captured(q, q, q)[0], model(q, q, q)[0]
    )


# --- the user's own model ------------------------------------------------------------------------------------------------


class Forgets(Linear):
    """A copy is not what the model is."""

    def __deepcopy__(self, memo: dict[int, object]) -> Forgets:
        made = Forgets()
        made.linear.load_state_dict(self.linear.state_dict())
        return made

    def forward(self, x: T, y: T | None = None) -> T:
        return self.linear(x) * self.factor


def test_a_model_that_its_copy_does_not_equal() -> None:
    model = Forgets().eval()
    utc.capture(model, X)
    model.factor = 5.0
    with pytest.raises(utc.UtcError, match="output 0 of the capture differs from the model's by"):
        utc.capture(model, X)


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("inner", [False, True])
def test_every_flag_is_as_it_was(outer: bool, inner: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4)).train(outer)
    model[1].train(inner)
    flags = [m.training for m in model.modules()]
    captured = utc.capture(model, X, verify="full")
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(captured(X), copy.deepcopy(model).eval()(X))
    assert not any(p.requires_grad for p in captured.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_a_mode_is_not_set_where_that_could_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Linear().train()
    running = threading.active_count() - 1  # a test runner, or a test before this one, may have its own threads
    monkeypatch.setattr(threading, "active_count", lambda: len(threading.enumerate()) - running)
    with in_mode(model, training=True) as own:
        assert own is model
    with in_mode(model, training=False) as own:
        assert own is model and not model.linear.training
    assert model.training and model.linear.training
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    with in_mode(model, training=False) as own:
        assert own is not model and not own.training and model.training
    done.set()
    other.join()


class Merges(nn.Linear):
    """LoRA as loralib has it: merged into the weight in eval, taken out again in training."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.a, self.b, self.merged = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(4, 2)), False

    def train(self, mode: bool = True) -> Merges:
        super().train(mode)
        if mode == self.merged:
            self.weight.data.add_(self.b @ self.a, alpha=-1 if mode else 1)
            self.merged = not mode
        return self

    def forward(self, x: T) -> T:
        return F.linear(x, self.weight, self.bias) + (0 if self.merged else x @ self.a.T @ self.b.T)


@pytest.mark.parametrize("training", [False, True])
def test_a_mode_that_writes_into_weights(training: bool) -> None:
    model = Merges().train(training)
    wrapped = nn.Sequential(model)
    before = {k: v.clone() for k, v in wrapped.state_dict().items()}
    captured = utc.capture(wrapped, X)
    assert all(torch.equal(v, before[k]) for k, v in wrapped.state_dict().items())
    assert model.training == training and model.merged != training
    assert torch.allclose(captured(X), model(X), atol=1e-5)  # merged and apart differ by rounding


# --- sizes ------------------------------------------------------------------------------------------------------------------


def test_a_size_that_was_not_recorded_is_compared_too() -> None:
    report = utc.capture(Linear().eval(), X).report
    assert report.verified == "values at the example inputs and at B=1"
    assert utc.capture(Linear().eval(), torch.randn(1, 4)).report.verified.endswith("and at B=4")
    assert utc.capture(Linear().eval(), X, dynamic={}).report.verified == "values at the example inputs"


def test_a_larger_size_is_compared_where_it_is_cheap() -> None:
    model, large = nn.Conv2d(3, 2, 3).eval(), torch.randn(1, 3, 150, 150)
    assert utc.capture(model, large).report.verified == "values at the example inputs"
    assert utc.capture(model, large.expand(4, -1, -1, -1)).report.verified.endswith("and at B=1")


def test_a_size_that_the_model_does_not_take_is_not_compared() -> None:
    class Pairs(Linear):
        def forward(self, x: T, y: T | None = None) -> T:
            assert x.shape[0] > 1
            return self.linear(x)

    model = Pairs().eval()
    assert torch.equal(utc.capture(model, X)(X), model(X))


class ByText(Linear):
    """A size that goes through text, where nothing can follow it."""

    def forward(self, x: T, y: T | None = None) -> T:
        return self.linear(x) * {"1": 3.0}.get(f"{x.shape[0]}", 1.0)


def test_a_capture_that_is_wrong_at_another_size_is_refused() -> None:
    model = ByText().eval()
    try:
        captured = utc.capture(model, X)
        captured(X[:1])
    except utc.UtcError as error:
        assert "B=1" in str(error) or "not 1" in str(error)
    else:
        raise AssertionError("ran, and is wrong")


# --- how a difference is reported --------------------------------------------------------------------------------------------


class ChoosesByTracing(Linear):
    """PaliGemma: another mask where it is traced."""

    def forward(self, x: T, y: T | None = None) -> T:
        traced = torch.compiler.is_compiling() or type(x) is not T
        return self.linear(x).tril() if traced else self.linear(x)


class ChoosesByType(Linear):
    """Another sibling: a fake tensor is no exact tensor."""

    def forward(self, x: T, y: T | None = None) -> T:
        return self.linear(x) * (1 + (type(x) is T))


class ReadsStorage(Linear):
    """The memory of a fake tensor is elsewhere."""

    def forward(self, x: T, y: T | None = None) -> T:
        return self.linear(x) * (1 + (x.untyped_storage().device.type == "cpu"))


@pytest.mark.parametrize("kind", [ChoosesByTracing, ChoosesByType, ReadsStorage])
def test_no_message_advises_to_switch_the_check_off_where_the_model_is_deterministic(kind: type[nn.Module]) -> None:
    with pytest.raises(utc.UtcError, match=r"output 0 of the capture differs from the model's by \d") as caught:
        utc.capture(kind().eval(), X)
    assert "the model is deterministic" in str(caught.value) and "verify" not in str(caught.value)


# --- the rounding of other kernels ------------------------------------------------------------------------------------------


class AddsInAnotherOrder(Linear):
    """The same sum by another kernel where it is traced (Dia: a causal mask that its eager forward leaves out)."""

    def forward(self, x: T, y: T | None = None) -> T:
        wide = self.linear(x).repeat(1, 999) * torch.linspace(0.1, 7, 4 * 999)
        return wide.sum(-1) if type(x) is T else wide.flip(-1).cumsum(-1)[:, -1]


class AddsInFloat32(Linear):
    """It names float32 on the way, as norms of language models do."""

    def forward(self, x: T, y: T | None = None) -> T:
        wide = self.linear(x).to(torch.float32).repeat(1, 999) * torch.linspace(0.1, 7, 4 * 999)
        return (wide.float().sum(-1) if type(x) is T else wide.float().flip(-1).cumsum(-1)[:, -1]).to(x.dtype)


class WritesItsSum(AddsInAnotherOrder):
    """The rounding is in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: T, y: T | None = None) -> T:
        self.seen.copy_(super().forward(x).mean())
        return self.linear(x)


@pytest.mark.parametrize("verify", ["values", "full"])
@pytest.mark.parametrize("kind", [AddsInAnotherOrder, AddsInFloat32, WritesItsSum])
def test_other_roundings_are_no_difference_and_are_reported(kind: type[nn.Module], verify: str) -> None:
    model = kind().eval()
    captured = utc.capture(model, X, verify=verify)
    assert "the same in float64, with other roundings at the example inputs" in captured.report.verified
    torch.testing.assert_close(captured(X * 2), model(X * 2), rtol=1e-5, atol=1e-5)
    assert all(p.dtype == torch.float32 for m in (model, captured) for p in m.parameters())


class AnotherEpsilon(Linear):
    """Traced, it has another constant: as small as roundings, and the same in float64."""

    def forward(self, x: T, y: T | None = None) -> T:
        return self.linear(x) + (0.0 if type(x) is T else 3e-7)


class AnotherEpsilonInANorm(Linear):
    def forward(self, x: T, y: T | None = None) -> T:
        return F.layer_norm(self.linear(x).to(torch.float32), (4,), eps=1e-5 if type(x) is T else 1.1e-5)


class AnotherInfinity(AddsInAnotherOrder):
    """Next to roundings, what is not finite is another number."""

    def forward(self, x: T, y: T | None = None) -> T:
        return torch.cat([super().forward(x), x.new_full((1,), float("inf") if type(x) is T else float("nan"))])


class OnlyInFloat32(AddsInAnotherOrder):
    """Whether it is rounding cannot be seen: it does not run in float64."""

    def forward(self, x: T, y: T | None = None) -> T:
        assert self.linear.weight.dtype == torch.float32 or type(x) is not T
        return super().forward(x)


@pytest.mark.parametrize("kind", [AnotherEpsilon, AnotherEpsilonInANorm, AnotherInfinity, OnlyInFloat32])
def test_a_difference_as_small_as_roundings_that_may_be_none_is_refused(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    with pytest.raises(utc.UtcError, match=r"output 0 of the capture differs from the model's by (\d|nan)"):
        utc.capture(kind().eval(), X)


class Unrepeatable(Linear):
    """A source of numbers that no seed reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = iter(range(1000))

    def __deepcopy__(self, memo: dict[int, object]) -> Unrepeatable:
        return self.__class__()

    def forward(self, x: T, y: T | None = None) -> T:
        return self.linear(x) * (1 + next(self.numbers))


def test_a_model_that_differs_from_itself_is_told_so() -> None:
    with pytest.raises(utc.UtcError, match="the model differs from itself") as caught:
        utc.capture(Unrepeatable().eval(), X)
    assert "not deterministic" in str(caught.value) and 'verify="shapes"' in str(caught.value)
