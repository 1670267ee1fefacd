"""A max-pool that keeps a small index and no input, and the ReLU before it, which then keeps nothing.

The largest number of a window after a ReLU is the ReLU of the largest number. So the ReLU runs on the pool's result,
which is smaller, and a window without a number above zero has no gradient: its index is -1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from utcompile.graph import Context, runs_plainly
from utcompile.memory.functions import no_numbers
from utcompile.tuners.gradients import Sides, per_axis

_FEWEST = 8  # channels: the kernel's vectors are of so many numbers


def small_index_pool(
    x: torch.Tensor,
    kernel: Sides,
    stride: Sides,
    padding: Sides,
    dilation: Sides,
    ceil_mode: bool,
    rectified: bool = False,
) -> torch.Tensor:
    """`F.max_pool2d` that keeps 16 or 32 bits per result, and no input.

    Args:
        x: what it reads.
        kernel, stride, padding, dilation, ceil_mode: as `F.max_pool2d` has them.
        rectified: whether a ReLU of x is pooled.

    Example:
        >>> x = torch.tensor([[[[1.0, 2.0], [4.0, 3.0]]]], requires_grad=True)
        >>> small_index_pool(x, 2, 2, 0, 1, False).sum().backward()
        >>> x.grad[0, 0]
        tensor([[0., 0.],
                [1., 0.]])
    """
    if not x.requires_grad or x.dim() != 4 or runs_plainly(x):
        return F.max_pool2d(x.relu() if rectified else x, kernel, stride, padding, dilation, ceil_mode)
    result: torch.Tensor = _SmallIndexPool.apply(x, rectified, ceil_mode, kernel, stride, padding, dilation)
    return result


class _SmallIndexPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: torch.Tensor, rectified: bool, ceil_mode: bool, *settings: Sides) -> torch.Tensor:
        sides = [per_axis(value, 2) for value in settings]
        y, index = _pooled(x, (*sides, ceil_mode))
        if rectified:
            index.masked_fill_(y.relu_() <= 0, -1)
        ctx.save_for_backward(index)
        ctx.like, ctx.settings, ctx.rectified = (x.shape, x.stride()), (*sides, ceil_mode), rectified
        return y

    @staticmethod
    def backward(ctx: Context, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        if ctx.rectified:
            grad, index = grad.masked_fill(index < 0, 0), index.clamp_min(0)
        shape, strides = ctx.like
        x = no_numbers(shape, strides, grad)
        found = torch.ops.aten.max_pool2d_with_indices_backward(grad, x, *ctx.settings, index.long())
        return found, *[None] * 6


def _pooled(x: torch.Tensor, settings: tuple[object, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest numbers, and where they are.

    On a CPU, torch's kernel for channels that lie next to each other takes a tenth of the time of the one for images
    in planes, and half of it with both copies. The results are the same.
    """
    integer = torch.int16 if x.shape[2] * x.shape[3] < 2**15 else torch.int32
    if x.device.type != "cpu" or not x.is_contiguous() or x.shape[1] < _FEWEST:
        y, index = torch.ops.aten.max_pool2d_with_indices(x, *settings)
        return y, index.to(integer)
    y, index = torch.ops.aten.max_pool2d_with_indices(x.contiguous(memory_format=torch.channels_last), *settings)
    return y.contiguous(), index.to(integer).contiguous()
