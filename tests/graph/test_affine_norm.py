"""A frozen BatchNorm keeps nothing for backward of what is large, and its gradient is torch's, in every precision."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from utcompile.graph import affine_norm
from utcompile.graph.affine_norm import affine_batch_norm


@pytest.fixture(autouse=True)
def _small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affine_norm, "_SMALL", 0)


@pytest.mark.parametrize(
    ("dtype", "lowered"),
    [(torch.float32, False), (torch.float64, False), (torch.bfloat16, False), (torch.bfloat16, True)],
)
def test_the_gradient_is_torchs_and_nothing_is_kept(dtype: torch.dtype, lowered: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6, 5, 5, dtype=dtype, requires_grad=True)
    own = torch.float32 if lowered else dtype  # of the norm's own numbers
    given = (torch.randn(6), torch.rand(6) + 0.5, torch.randn(6), torch.randn(6))
    mean, variance, weight, bias = (t.to(own) for t in given)
    kept: list[torch.Tensor] = []
    with torch.autocast("cpu", torch.bfloat16) if lowered else nullcontext():
        with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            y = affine_batch_norm(x, mean, variance, weight, bias)
        plain = F.batch_norm(x, mean, variance, weight, bias)
    assert y.dtype == plain.dtype and torch.equal(y, plain)
    assert {t.untyped_storage()._cdata for t in kept} <= {t.untyped_storage()._cdata for t in (variance, weight)}
    g = torch.randn_like(y)
    (found,), (expected,) = (torch.autograd.grad(r, x, g) for r in (y, plain))
    exact = g.double() * (weight.double() / (variance.double() + 1e-5).sqrt()).view(-1, 1, 1)
    assert found.dtype == expected.dtype
    # one rounding of the result, as torch's own has it
    bound = torch.finfo(dtype).eps * exact.abs().max() * (1 if dtype == torch.bfloat16 else 4)
    assert (found.double() - exact).abs().max() <= bound


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5), (4, 6, 5, 5), (2, 6, 3, 4, 5)])
def test_gradients_of_gradients_and_layouts(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    mean, variance, weight = torch.randn(6).double(), torch.rand(6).double() + 0.5, torch.randn(6).double()
    assert torch.autograd.gradcheck(lambda t: affine_batch_norm(t, mean, variance, weight).sin(), x)
    assert torch.autograd.gradgradcheck(lambda t: affine_batch_norm(t, mean, variance).sin(), x)
    g = torch.randn(1, dtype=torch.float64).expand(shape)  # no memory of its own
    (found,) = torch.autograd.grad(affine_batch_norm(x, mean, variance, weight), x, g)
    (expected,) = torch.autograd.grad(F.batch_norm(x, mean, variance, weight), x, g)
    torch.testing.assert_close(found, expected)


def test_a_small_one_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    state = (torch.zeros(4), torch.ones(4))
    names = [
        type(affine_batch_norm(torch.randn(2, 4, n, requires_grad=True), *state).grad_fn).__name__ for n in (4096, 4097)
    ]
    assert names == ["NativeBatchNormBackward0", "_AffineBackward"]
