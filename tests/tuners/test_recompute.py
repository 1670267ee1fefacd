"""A tuned weight is computed again in backward: the right one, with the right gradients, and nothing else is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from utcompile.tuners import Tuner, recomputed


class Product(Tuner):
    """W -> W ⊙ (1 + u v), which depends on its factors twice over."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.randn(shape[0], *[1] * (len(shape) - 1)))
        self.v = nn.Parameter(torch.randn(shape[1:]))

    def changed(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * (1 + self.u * self.v)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


# function, its inputs beside the weight, the weight's shape, how it is called
CALLS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], Callable[..., Any]]] = {
    "linear": ("linear", (2, 3, 4), (5, 4), lambda f, x, w, b: f(x, w, b)),
    "linear on a vector": ("linear", (4,), (5, 4), lambda f, x, w, b: f(x, w)),
    "linear by keyword": ("linear", (2, 4), (5, 4), lambda f, x, w, b: f(x, w, bias=b)),
    "conv1d": ("conv1d", (2, 4, 9), (6, 2, 3), lambda f, x, w, b: f(x, w, None, 2, 1, 2, 2)),
    "conv2d": ("conv2d", (2, 3, 7, 6), (5, 3, 3, 2), lambda f, x, w, b: f(x, w, b, (2, 1), padding=(1, 0))),
    "conv2d to the same size": ("conv2d", (2, 3, 7, 6), (5, 3, 3, 3), lambda f, x, w, b: f(x, w, b, padding="same")),
    "conv2d of one": ("conv2d", (3, 7, 6), (5, 3, 3, 2), lambda f, x, w, b: f(x, w, b)),
    "conv3d": ("conv3d", (1, 2, 3, 4, 5), (5, 2, 2, 2, 2), lambda f, x, w, b: f(x, w, b, dilation=1)),
    "conv_transpose1d": ("conv_transpose1d", (2, 4, 5), (4, 5, 3), lambda f, x, w, b: f(x, w, b, 2, 1, 1)),
    "conv_transpose2d": (
        "conv_transpose2d",
        (2, 4, 5, 4),
        (4, 3, 2, 3),
        lambda f, x, w, b: f(x, w, None, 2, output_padding=1, groups=2, dilation=2),
    ),
    "matmul": ("matmul", (2, 3, 4), (4, 5), lambda f, x, w, b: f(x, w)),
    "matmul from the left": ("matmul", (2, 4, 3), (5, 4), lambda f, x, w, b: f(w, x)),
    "matmul that broadcasts": ("matmul", (2, 1, 3, 4), (6, 4, 5), lambda f, x, w, b: f(x, w)),
    "matmul of a vector": ("matmul", (4,), (4, 5), lambda f, x, w, b: f(x, w)),
    "bmm": ("bmm", (2, 3, 4), (2, 4, 5), lambda f, x, w, b: f(x, w)),
    "einsum": ("einsum", (2, 3, 4), (5, 4), lambda f, x, w, b: f("bnd,ed->ben", x, w)),
    "einsum with a sum of its own": ("einsum", (2, 3, 4), (5, 4), lambda f, x, w, b: f("bnd,ed->be", x, w)),
}


@pytest.mark.parametrize("kind", CALLS)
def test_gradients_are_those_of_the_plain_operation(kind: str) -> None:
    """Of first and of second order: backward is made of operations that have gradients."""
    torch.manual_seed(0)
    function, shape, weight_shape, call = CALLS[kind]
    plain = getattr(F, function, None) or getattr(torch, function)
    tuner = Product(weight_shape).double()
    x, weight, bias = draw(*shape), torch.randn(weight_shape, dtype=torch.float64), draw(5)
    leaves = [x, bias, *tuner.parameters()]

    def gradients(run: Callable[..., torch.Tensor], changed: torch.Tensor) -> list[torch.Tensor | None]:
        y = call(run, x, changed, bias)
        first = torch.autograd.grad(y.sin().sum(), leaves, create_graph=True, allow_unused=True)
        total = sum(g.square().sum() for g in first if g is not None)
        return [*first, *torch.autograd.grad(total, leaves, allow_unused=True)]

    found = gradients(lambda *a, **k: recomputed(function, *a, **k), tuner(weight))
    expected = gradients(plain, tuner.changed(weight))
    assert any(g is not None for g in expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", CALLS)
def test_writes_in_place_behind_a_call_are_what_they_are_in_torch(kind: str) -> None:
    """To its result and its bias they are harmless; its other factor is needed, and a write to it is torch's error.

    Torch copies the factors of some products to multiply them, and saves its copy. Ours saves the factor itself, and so
    has the error there too.
    """
    torch.manual_seed(0)
    function, shape, weight_shape, call = CALLS[kind]
    plain = getattr(F, function, None) or getattr(torch, function)
    tuner, weight = Product(weight_shape).double(), torch.randn(weight_shape, dtype=torch.float64)
    x, bias = draw(*shape), draw(5)

    def gradients(run: Callable[..., torch.Tensor], changed: torch.Tensor, *, factor: bool) -> list[torch.Tensor]:
        own, added = x * 1, bias * 1
        y = call(run, own, changed, added)
        y[..., :2] = 0
        y[0].mul_(2)
        y.sin_()
        added.zero_()
        if factor:
            own.zero_()
        return list(torch.autograd.grad(y.sum(), [x, *tuner.parameters()]))

    def ours(*args: Any, **kwargs: Any) -> torch.Tensor:
        return recomputed(function, *args, **kwargs)

    for one, other in zip(
        gradients(ours, tuner(weight), factor=False), gradients(plain, tuner.changed(weight), factor=False), strict=True
    ):
        torch.testing.assert_close(one, other)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(ours, tuner(weight), factor=True)
    if kind not in ("matmul from the left", "matmul that broadcasts", "einsum with a sum of its own"):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradients(plain, tuner.changed(weight), factor=True)


def kept(run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What a call gives, and the tensors that it saves and that own their memory."""
    found: list[torch.Tensor] = []

    def keep(t: torch.Tensor) -> torch.Tensor:
        found.append(t)
        return t

    with saved_tensors_hooks(keep, lambda t: t):
        return run(), found


def test_neither_the_weight_nor_a_view_of_it_is_saved() -> None:
    tuner, x = Product((64, 32)), torch.randn(3, 32, requires_grad=True)
    weight = nn.Parameter(torch.randn(64, 32), requires_grad=False)
    changed = tuner(weight)
    _, found = kept(lambda: recomputed("linear", x, changed))
    assert [t.shape for t in found] == [x.shape]
    _, found = kept(lambda: F.linear(x, changed))
    assert weight.numel() in [t.numel() for t in found]


def test_what_lies_around_the_model_sees_what_is_saved() -> None:
    """`checkpoint` frees it, `save_on_cpu` moves it: no hooks of ours come between."""
    tuner, x = Product((8, 4)), torch.randn(3, 4, requires_grad=True)
    weight = nn.Parameter(torch.randn(8, 4), requires_grad=False)

    def run(x: torch.Tensor) -> torch.Tensor:
        return recomputed("linear", x, tuner(weight)).sin()

    expected = torch.autograd.grad(run(x).sum(), [x, tuner.u, tuner.v])
    _, found = kept(lambda: checkpoint(run, x, use_reentrant=False))
    assert [t.shape for t in found if t.numel()] == [x.shape]  # what it runs again from
    for reentrant in (True, False):
        y = checkpoint(run, x, use_reentrant=reentrant)
        tuner.zero_grad()
        x.grad = None
        y.sum().backward()
        assert all(torch.equal(a.grad, b) for a, b in zip([x, tuner.u, tuner.v], expected, strict=True))
    with save_on_cpu():
        y = run(x)
    assert all(
        torch.equal(a, b) for a, b in zip(torch.autograd.grad(y.sum(), [x, tuner.u, tuner.v]), expected, strict=True)
    )


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("function", ["linear", "matmul", "conv_transpose1d"])
def test_under_autocast_the_weight_of_backward_is_that_of_forward(function: str, inside: bool) -> None:
    """Backward outside autocast, as torch's documentation has it, and inside."""
    torch.manual_seed(0)
    shapes = {"linear": ((6, 16), (8, 16)), "matmul": ((6, 16), (16, 8)), "conv_transpose1d": ((2, 16, 5), (16, 8, 3))}
    shape, weight_shape = shapes[function]
    plain = getattr(F, function, None) or getattr(torch, function)

    class Low(Product):
        def changed(self, weight: torch.Tensor) -> torch.Tensor:
            flat = self.v.reshape(1, -1)
            return weight + (self.u.reshape(-1, 1) @ flat).reshape(weight.shape)  # in bfloat16 under autocast

    tuner, x = Low(weight_shape), torch.randn(shape, requires_grad=True)
    weight = torch.randn(weight_shape)

    def gradients(run: Callable[..., torch.Tensor], make: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            y = run(x, make(weight))
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            return torch.autograd.grad(y.float().square().sum(), [x, *tuner.parameters()])

    found = gradients(lambda *a: recomputed(function, *a), tuner)
    expected = gradients(plain, tuner.changed)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype == torch.float32
        # products of the same bfloat16 numbers, whose sums may be rounded in another order: two units of 2⁻⁸
        torch.testing.assert_close(one, other, rtol=2**-7, atol=2**-7 * float(other.abs().max()))


def test_a_forward_outside_autocast_has_a_backward_with_the_same_weight() -> None:
    torch.manual_seed(0)
    tuner, x, weight = Product((8, 4)), torch.randn(3, 4, requires_grad=True), torch.randn(8, 4)
    seen = []
    changed = tuner.changed
    tuner.changed = lambda w: seen.append(changed(w)) or seen[-1]  # type: ignore[func-returns-value,method-assign]
    y = recomputed("linear", x, tuner(weight)).sum()
    with torch.autocast("cpu", torch.bfloat16):
        y.backward()
    assert len(seen) == 2 and torch.equal(*seen)


def test_parameters_that_were_lent_for_one_call_are_those_of_its_backward() -> None:
    """`functional_call` puts the module's own back before backward runs."""
    torch.manual_seed(0)
    x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(8, 4)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tuner = Product((8, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return recomputed("linear", x, self.tuner(weight))

    layer = Layer()
    lent = {n: torch.randn_like(p, requires_grad=True) for n, p in layer.named_parameters()}
    y = torch.func.functional_call(layer, lent, x)
    other = Layer()
    other.load_state_dict(lent)
    for one, two in zip(
        torch.autograd.grad(y.sin().sum(), [x, *lent.values()]),
        torch.autograd.grad(other(x).sin().sum(), [x, *other.parameters()]),
        strict=True,
    ):
        assert torch.equal(one, two)


@pytest.mark.parametrize("which", ["factor", "base"])
def test_a_parameter_that_changed_before_backward_is_an_error(which: str) -> None:
    tuner, x = Product((8, 4)), torch.randn(3, 4)
    weight = nn.Parameter(torch.randn(8, 4), requires_grad=False)
    y = recomputed("linear", x, tuner(weight)).sum()
    with torch.no_grad():
        (tuner.u if which == "factor" else weight).add_(1)
    with pytest.raises(RuntimeError, match="modified in place between forward and backward"):
        y.backward()
