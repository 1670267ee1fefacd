"""Layers that are more than their class: what hangs on them is recorded, or refused by name."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import utcompile as utc
from utcompile.graph import is_leaf, more_than_its_class

T = torch.Tensor
X = torch.randn(3, 6)
# what a rule of nothing but a kind of tuner does at every linear: the model has no head to train
TUNED = "version: 1\nname: r\nrules:\n  - {name: n, match: 'h = linear(x)', insert: {weight: h, tuner: {kind: KIND}}}\n"


class Symmetric(nn.Module):
    """A parametrisation of a user's own."""

    def forward(self, weight: T) -> T:
        return weight.triu() + weight.triu(1).mT


class Tripled(nn.Linear):
    """A subclass with its own forward."""

    def forward(self, x: T) -> T:
        return super().forward(x) * 3


class Scale:
    """An object whose method is a hook."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def hook(self, module: nn.Module, given: Any, result: T) -> T:
        return result * self.model[5].bias.sum()  # type: ignore[index]


def forward_hook(m: nn.Sequential) -> None:
    m[0].register_forward_hook(lambda module, given, result: result * 2 + 1)


def pre_hook(m: nn.Sequential) -> None:
    m[2].register_forward_pre_hook(lambda module, given: (given[0] * 3,))


def pre_hook_with_keywords(m: nn.Sequential) -> None:
    m[2].register_forward_pre_hook(lambda module, args, kwargs: ((args[0] * 3,), kwargs), with_kwargs=True)


def hook_on_a_norm(m: nn.Sequential) -> None:
    m[3].register_forward_hook(lambda module, given, result: result * 2 + 1)


def hook_that_closes_over_the_model(m: nn.Sequential) -> None:
    m[0].register_forward_hook(lambda module, given, result: result + m[5].bias.sum())


def hook_that_is_a_method(m: nn.Sequential) -> None:
    m[0].register_forward_hook(Scale(m).hook)


def patched_forward(m: nn.Sequential) -> None:
    plain = m[0].forward
    m[0].forward = lambda x: plain(x) * 2 + 1


def patched_forward_with_a_default(m: nn.Sequential) -> None:
    m[0].forward = lambda x, plain=m[0].forward: plain(x) * 2 + 1


def patched_forward_that_is_partial(m: nn.Sequential) -> None:
    m[0].forward = functools.partial(lambda layer, x: nn.Linear.forward(layer, x) * 2, m[0])


def hook_of_accelerate(m: nn.Sequential) -> None:
    hooks = pytest.importorskip("accelerate.hooks")

    class Halves(hooks.ModelHook):  # type: ignore[misc, name-defined]
        def post_forward(self, module: nn.Module, output: T) -> T:
            return output / 2

    hooks.add_hook_to_module(m[0], Halves())


def subclass(m: nn.Sequential) -> None:
    m[0] = Tripled(6, 12)


HOOKED = [
    forward_hook,
    pre_hook,
    pre_hook_with_keywords,
    hook_on_a_norm,
    hook_that_closes_over_the_model,
    hook_that_is_a_method,
    patched_forward,
    patched_forward_with_a_default,
    patched_forward_that_is_partial,
    hook_of_accelerate,
    subclass,
]


def weight_norm(m: nn.Sequential) -> None:
    parametrizations.weight_norm(m[0])


def weight_norm_of_old(m: nn.Sequential) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still met
        nn.utils.weight_norm(m[0])


def spectral_norm(m: nn.Sequential) -> None:
    parametrizations.spectral_norm(m[0])


def spectral_norm_of_old(m: nn.Sequential) -> None:
    nn.utils.spectral_norm(m[0])


def orthogonal(m: nn.Sequential) -> None:
    parametrizations.orthogonal(m[2])


def own_parametrisation(m: nn.Sequential) -> None:
    parametrize.register_parametrization(m[2], "weight", Symmetric())


def pruned(m: nn.Sequential) -> None:
    prune.l1_unstructured(m[0], "weight", 0.5)


def pruned_bias(m: nn.Sequential) -> None:
    prune.l1_unstructured(m[0], "bias", 0.5)
    prune.random_structured(m[2], "weight", 0.3, dim=0)


COMPUTED = [
    weight_norm,
    weight_norm_of_old,
    spectral_norm,
    spectral_norm_of_old,
    orthogonal,
    own_parametrisation,
    pruned,
    pruned_bias,
]


EVERY = "version: 1\nname: t\nrules:\n  - {{name: r, match: {{op: linear}}, insert: {{weight: h, tuner: {{kind: {kind}}}}}}}\n"


def changed(change: Callable[[nn.Sequential], None]) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 4))
    change(model)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("change", [*HOOKED, *COMPUTED])
def test_the_untrained_tuned_model_is_the_model(change: Callable[[nn.Sequential], None]) -> None:
    model = changed(change)
    captured = utc.capture(model, X)
    expected = model(X)
    assert torch.equal(captured(X), expected) and not captured.report.pinned
    for rule in ("lora/all_linear", "lora/dora_all_linear", "bitfit/biases", "bitfit/norms"):
        tuned = utc.match(captured, rule).apply().eval()
        assert torch.equal(tuned(X), expected), rule


@pytest.mark.parametrize("change", [forward_hook, patched_forward, weight_norm, pruned])
def test_a_trained_one_folds(change: Callable[[nn.Sequential], None]) -> None:
    tuned = utc.match(utc.capture(changed(change), X), "lora/all_linear").apply().eval()
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    folded, report = utc.fold(tuned)
    assert {s.status for s in report.sites} == {"absorbed"}
    assert torch.allclose(folded(X), tuned(X), atol=1e-5)  # float32 sums of a dozen numbers in another order


@pytest.mark.parametrize("change", COMPUTED)
def test_scaling_a_computed_weight_says_how_to_bake_it_in(change: Callable[[nn.Sequential], None]) -> None:
    captured = utc.capture(changed(change), X)
    (skipped,) = utc.match(captured, "ssf/all_layers").skipped
    assert skipped.path in "02" and "the model computes the weight from a parameter" in skipped.reason
    with pytest.raises(utc.UtcError, match="the model computes the weight from a parameter") as caught:
        utc.match(captured, EVERY.format(kind="ssf"))
    assert "remove_parametrizations(layer, 'weight', leave_parametrized=True)" in str(caught.value)
    assert "prune.remove(layer, 'weight')" in str(caught.value)


def test_baked_in_it_scales() -> None:
    model = changed(weight_norm).requires_grad_(True)
    parametrize.remove_parametrizations(model[0], "weight", leave_parametrized=True)
    tuned = utc.compile(model.requires_grad_(False), "ssf/all_layers", X).eval()
    assert torch.equal(tuned(X), model(X))


def test_baked_in_while_frozen_it_is_a_buffer_and_named() -> None:
    model = changed(weight_norm)
    parametrize.remove_parametrizations(model[0], "weight", leave_parametrized=True)
    captured = utc.capture(model, X)
    assert torch.equal(captured(X), model(X))
    (skipped,) = utc.match(captured, "lora/all_linear").skipped
    assert "the weight of 0 is a buffer and not a parameter" in skipped.reason
    with pytest.raises(utc.UtcError, match="the weight of 0 is a buffer and not a parameter"):
        utc.match(captured, EVERY.format(kind="lora"))
    model[0].weight = nn.Parameter(model[0]._buffers.pop("weight"))
    assert torch.equal(utc.compile(model, "lora/all_linear", X).eval()(X), model(X))


def test_copies_and_pickles_of_a_hooked_capture() -> None:
    captured = utc.capture(changed(forward_hook), X)
    for other in (copy.deepcopy(captured), pickle.loads(pickle.dumps(captured))):
        assert torch.equal(other(X), captured(X)) and other.state_dict().keys() == captured.state_dict().keys()


@pytest.mark.parametrize("base", ["frozen", "follow"])
@pytest.mark.parametrize("verify", ["values", "full"])
def test_spectral_norm_in_eval_leaves_its_vectors(base: Any, verify: Any) -> None:
    if (base, verify) == ("follow", "full"):
        pytest.skip("it compares in train mode too, where the model itself moves them")
    model = changed(spectral_norm)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    captured = utc.capture(model, X, base=base, verify=verify)
    captured(X)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_hooks_for_all_modules_are_recorded() -> None:
    model = changed(lambda m: None)
    handle = nn.modules.module.register_module_forward_hook(lambda m, a, y: y * 2 if isinstance(m, nn.Linear) else None)
    try:
        captured, expected = utc.capture(model, X), model(X)
    finally:
        handle.remove()
    assert torch.equal(captured(X), expected)
    tuned = utc.match(captured, "lora/all_linear").apply().eval()
    assert torch.equal(tuned(X), expected)


def test_the_hook_of_a_copy_works_on_the_copy() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.seen = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), dict[int, T]()
            self.net[0].register_forward_hook(lambda module, given, result: self.seen.__setitem__(0, result))

        def forward(self, x: T) -> T:
            self.net(x)
            return self.seen[0]

    model = Features().eval()
    captured = utc.capture(model, X, verify="shapes")
    assert model.seen == {} and torch.equal(captured(X), model(X))


def test_hooks_of_functions_that_share_a_variable_still_share_it() -> None:
    def shared(m: nn.Sequential) -> None:
        kept: list[T] = []
        m[0].register_forward_hook(lambda module, given, result: kept.append(result + m[5].bias.sum()))
        m[5].register_forward_hook(lambda module, given, result: result + kept.pop().mean())

    model = changed(shared)
    captured = utc.capture(model, X)
    assert torch.equal(captured(X), model(X))


@pytest.mark.parametrize(
    ("layer", "example"),
    [
        (nn.LSTM(6, 6, batch_first=True), torch.randn(2, 5, 6)),
        (nn.Embedding(9, 6), torch.randint(0, 9, (2, 5))),
        (nn.Conv1d(5, 5, 3, padding=1, padding_mode="reflect"), torch.randn(2, 5, 6)),
        (nn.ConvTranspose1d(5, 5, 3, padding=1), torch.randn(2, 5, 6)),
        (nn.BatchNorm1d(5), torch.randn(2, 5, 6)),
        (nn.GELU(), torch.randn(2, 5, 6)),
        (nn.MaxPool1d(3, 1, 1), torch.randn(2, 5, 6)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_hook_on_any_kind_of_layer(layer: nn.Module, example: T) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = layer, nn.Linear(6, 3)

        def forward(self, x: T) -> T:
            y = self.layer(x)
            return self.head(y[0] if isinstance(y, tuple) else y)

    def double(module: nn.Module, given: Any, result: Any) -> Any:
        return (result[0] * 2, result[1]) if isinstance(result, tuple) else result * 2

    model = Around().eval().requires_grad_(False)
    handle = layer.register_forward_hook(double)
    captured, expected = utc.capture(model, example), model(example)
    handle.remove()
    assert torch.equal(captured(example), expected)
    tuned = utc.match(captured, TUNED.replace("KIND", "lora")).apply().eval()
    # gradients choose another kernel for 3-d inputs, which rounds elsewhere
    assert torch.allclose(tuned(example), expected, atol=1e-6)


def test_multihead_attention_with_hooks_and_a_computed_weight() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
            parametrizations.weight_norm(self.attend, "in_proj_weight")
            self.attend.out_proj.register_forward_hook(lambda module, given, result: result * 2)

        def forward(self, x: T) -> T:
            return self.attend(x, x, x, need_weights=False)[0]

    model, x = Attends().eval().requires_grad_(False), torch.randn(2, 5, 8)
    # the model's own fast path, which a capture does not take, rounds elsewhere
    assert torch.allclose(utc.capture(model, x)(x), model(x), atol=1e-6)


def test_what_is_a_leaf_and_why_not() -> None:
    plain, hooked = nn.Linear(2, 2), nn.Linear(2, 2)
    hooked.register_forward_hook(lambda module, given, result: None)
    assert is_leaf(plain) and more_than_its_class(plain) is None
    assert not is_leaf(hooked) and more_than_its_class(hooked) == "it has forward hooks"
    assert not is_leaf(nn.Sequential(plain))
    assert more_than_its_class(parametrizations.weight_norm(nn.Linear(2, 2))) == "a parametrisation computes its weight"


def test_a_layer_that_does_more_is_in_the_report() -> None:
    captured = utc.capture(changed(pruned_bias), X)
    text = str(captured.report)
    assert "note: 0: its bias is computed by a hook" in text and "note: 2: its weight is computed by a hook" in text


# --- what is dropped ----------------------------------------------------------------------------------------------


def test_backward_hooks_are_dropped_and_reported() -> None:
    inner = nn.Sequential(nn.Linear(6, 6))
    model = nn.Sequential(inner, nn.Linear(6, 3)).eval()
    inner.register_full_backward_hook(lambda module, given, result: tuple(g * 2 for g in given))
    model[1].register_full_backward_pre_hook(lambda module, result: tuple(g * 3 for g in result))
    model[1].weight.register_hook(lambda grad: grad * 5)
    captured = utc.capture(model, X)
    assert captured.report.notes == (
        "0, 1: backward hooks are dropped, gradients of the capture are those without them",
        "1.weight: hooks on a parameter's gradient are dropped, the capture has its own parameters",
    )
    given = X.clone().requires_grad_()
    captured(given).sum().backward()
    plain = (model[1].weight.detach().sum(0) @ inner[0].weight.detach()).expand(3, 6)
    assert given.grad is not None and torch.allclose(given.grad, plain, atol=1e-6)  # sums in another order
    assert len(inner._backward_hooks) == len(model[1]._backward_pre_hooks) == 1


@pytest.mark.parametrize("asks", [True, False])
def test_hooks_on_tensors_are_reported(asks: bool) -> None:
    class Hooks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: T) -> T:
            y = self.linear(x)
            if not asks or y.requires_grad:
                y.register_hook(lambda grad: grad * 3)
            return y * y

    report = utc.capture(Hooks(), X, verify="shapes").report
    assert report.notes[0].startswith("the root module: hooks on a tensor's gradient are dropped")


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpoints_are_reported(reentrant: bool) -> None:
    class Checkpoints(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: T) -> T:
            found: T = torch.utils.checkpoint.checkpoint(self.linear, x, use_reentrant=reentrant)
            return found

    (note,) = utc.capture(Checkpoints(), X).report.notes
    assert note.startswith("the root module: gradient checkpointing is dropped") and "test_layers.py" in note


def test_flags_of_checkpointing_and_tied_weights_are_reported() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head, self.gradient_checkpointing = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False), True
            self.head.weight = self.embed.weight
            self.again = self.head  # the same layer under two names is no tie

        def forward(self, ids: T) -> T:
            found: T = self.head(self.embed(ids))
            return found

    notes = utc.capture(Tied(), torch.randint(0, 9, (2, 4))).report.notes
    assert [n.split(":")[0] for n in notes] == ["the root module", "embed.weight and head.weight are one tensor"]


# --- what has no weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "example", "place"),
    [
        (nn.LazyLinear(3), X, "1"),
        (nn.Sequential(nn.LazyBatchNorm1d()), X, "1.0"),
        (nn.Sequential(nn.Linear(6, 4), nn.LazyLinear(2)), X, "1.1"),
    ],
)
def test_lazy_layers_are_run_once_first(layer: nn.Module, example: T, place: str) -> None:
    model = nn.Sequential(nn.Linear(6, 6), layer).eval()
    with pytest.raises(utc.UtcError, match="run the model once on the example first") as caught:
        utc.capture(model, example)
    assert caught.value.where == place
    expected = model(example)
    assert torch.equal(utc.capture(model.requires_grad_(False), example)(example), expected)


def test_weights_that_a_hook_loads_are_refused() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.cpu_offload(nn.Sequential(nn.Linear(6, 6), nn.ReLU()).eval(), torch.device("cpu"))
    with pytest.raises(utc.UtcError, match="a hook loads the weights of Linear in each call"):
        utc.capture(model, X)


class Lends(nn.Module):
    """Calls one layer with parameters that are not its own."""

    def __init__(self, lend: Callable[[nn.Linear, nn.Linear, T], T]) -> None:
        super().__init__()
        self.one, self.other, self.lend = nn.Linear(6, 6), nn.Linear(6, 6), lend

    def forward(self, x: T) -> T:
        return self.lend(self.one, self.other, x) + self.one(x)


def _computed(one: nn.Linear, other: nn.Linear, x: T) -> T:
    given = {"weight": other.weight * 2, "bias": other.bias.flip(0)}
    return torch.func.functional_call(one, given, (x,))


def _of_another_layer(one: nn.Linear, other: nn.Linear, x: T) -> T:
    return torch.func.functional_call(one, {"weight": other.weight}, (x,))


def _of_the_input(one: nn.Linear, other: nn.Linear, x: T) -> T:
    return torch.func.functional_call(one, {"weight": other(x)[:6].softmax(0)}, (x,))


@pytest.mark.parametrize("verify", ["values", "shapes"])
@pytest.mark.parametrize("lend", [_computed, _of_another_layer, _of_the_input])
def test_a_layer_that_is_called_with_other_parameters(lend: Callable[..., T], verify: Any) -> None:
    model = Lends(lend).eval().requires_grad_(False)
    x = torch.randn(9, 6)
    captured = utc.capture(model, x, dynamic={}, verify=verify)
    assert torch.equal(captured(x), model(x))
