"""Operations that keep less for backward than torch's own: the same results, and the same gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from utcompile.graph import Context, autocast_dtype, runs_plainly
from utcompile.memory.masks import is_dense, masked, pack_signs
from utcompile.memory.strides import few_positions
from utcompile.tuners.gradients import Sides, per_axis

_SMALL = 2**15  # numbers: below, what would be saved is less than what a call of Python costs
_CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def frozen_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sides,
    padding: Sides,
    dilation: Sides,
    groups: int,
) -> torch.Tensor:
    """A convolution that keeps no input, which its own gradient does not need where the weight has none.

    Example:
        >>> x, weight = torch.ones(1, 1, 3, 3, requires_grad=True), torch.ones(1, 1, 3, 3)
        >>> frozen_conv(x, weight, None, 1, 1, 1, 1).sum().backward()
        >>> x.grad[0, 0, 1]
        tensor([6., 9., 6.])
    """
    trains = weight.requires_grad or (bias is not None and bias.requires_grad)
    if trains or not x.requires_grad or x.dim() != weight.dim() or runs_plainly(x, weight):
        return _CONVS[weight.dim() - 2](x, weight, bias, stride, padding, dilation, groups)
    result: torch.Tensor = _FrozenConv.apply(x, weight, bias, stride, padding, dilation, groups)
    return result


def frozen_conv_of_kept(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sides,
    padding: Sides,
    dilation: Sides,
    groups: int,
) -> torch.Tensor:
    """`frozen_conv` of an input that a tuner keeps anyway: torch's own, which is faster than a call of Python.

    Autocast would keep a copy of it, and torch is slow at strides over single positions.
    """
    n = weight.dim() - 2
    if (
        x.dim() != weight.dim()
        or autocast_dtype(x.device.type) is not None
        or few_positions(x, weight, per_axis(stride, n), per_axis(padding, n)) is not None
    ):
        return frozen_conv(x, weight, bias, stride, padding, dilation, groups)
    return _CONVS[n](x, weight, bias, stride, padding, dilation, groups)


class _FrozenConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        stride: Sides,
        padding: Sides,
        dilation: Sides,
        groups: int,
    ) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.like, ctx.settings = (x.shape, x.stride(), x.dtype), (stride, padding, dilation, groups)
        return _CONVS[weight.dim() - 2](x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Context, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        shape, strides, dtype = ctx.like
        stride, padding, dilation, groups = ctx.settings
        n = weight.dim() - 2
        sides = [per_axis(v, n) for v in (stride, padding, dilation)]
        x = no_numbers(shape, strides, grad)
        positions = few_positions(x, weight, *sides[:2]) if groups == 1 and grad.is_contiguous() else None
        if positions is not None:
            x, sides[0] = positions.like(x), [1] * n
        of_x, _, _ = torch.ops.aten.convolution_backward(
            grad, x, weight.to(grad.dtype), None, *sides, False, [0] * n, groups, [True, False, False]
        )
        of_x = of_x if positions is None else positions.put(of_x, shape)
        return of_x.to(dtype), *[None] * 6


def no_numbers(shape: Sequence[int], strides: Sequence[int], grad: torch.Tensor) -> torch.Tensor:
    """A tensor in the layout of an input of which no number is read: kernels need its shape and layout alone."""
    return torch.empty_strided(shape, strides, dtype=grad.dtype, device=grad.device)


def bit_relu(x: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """ReLU that keeps one bit per number instead of its result; small ones are torch's own.

    Args:
        x: what it reads.
        inplace: whether the result takes x's memory; then nothing else may read x any more.

    Example:
        >>> x = torch.randn(256, 256, requires_grad=True)
        >>> bit_relu(x).sum().backward()
        >>> torch.equal(x.grad, (x > 0).float())
        True
    """
    other_readers = inplace and x._is_view()  # of the memory: their gradients pass through the ReLU too
    if not x.requires_grad or x.numel() < _SMALL or other_readers or runs_plainly(x) or not is_dense(x):
        return F.relu(x, inplace)
    result: torch.Tensor = _BitRelu.apply(x, inplace)
    return result


class _BitRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: torch.Tensor, inplace: bool) -> torch.Tensor:
        y = x.detach().relu_() if inplace else x.relu()
        ctx.save_for_backward(pack_signs(y))
        ctx.strides = y.stride()
        return y

    @staticmethod
    def backward(ctx: Context, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (bits,) = ctx.saved_tensors
        return masked(grad, bits, ctx.strides), None
