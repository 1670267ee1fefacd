"""Results of products of fake tensors without torch's own detour: it views, transposes, multiplies and views again.

A product of plain fakes is a new contiguous tensor whose shape is known. Wherever more than that is so (another class,
mixed dtypes or devices, autocast, gradients, an error that torch must raise), torch answers.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from utcompile.recording.active import Args, Kwargs

T = torch.Tensor
_PRODUCTS = frozenset([torch.matmul, T.matmul, T.__matmul__])


def linear(module: nn.Module, args: Args, kwargs: Kwargs) -> T | None:
    """The result of an `nn.Linear`: (..., in) -> (..., out); None where torch must compute it."""
    if type(module) is not nn.Linear or len(args) != 1 or kwargs:
        return None
    x, weight, bias = args[0], module.weight, module.bias
    if type(x) is not FakeTensor or not _alike(weight, x) or not (bias is None or _alike(bias, x)) or x.dim() < 2:
        return None
    shape = x.shape
    if weight.dim() != 2 or shape[-1] != weight.shape[1] or not (bias is None or bias.shape == weight.shape[:1]):
        return None
    return _new(x, (*shape[:-1], weight.shape[0]))


def product(function: object, args: Args, kwargs: Kwargs) -> T | None:
    """The result of `matmul` of two batches of as many dimensions; None where torch must compute it."""
    if function not in _PRODUCTS or len(args) != 2 or kwargs:
        return None
    a, b = args
    if type(a) is not FakeTensor or not _alike(b, a):
        return None
    left, right = a.shape, b.shape
    if len(left) != len(right) or len(left) < 3 or left[-1] != right[-2] or left[:-2] != right[:-2]:
        return None
    return _new(a, (*left[:-1], right[-1]))


def _alike(b: object, a: FakeTensor) -> TypeGuard[FakeTensor]:
    """Whether both are plain fakes of one dtype and device, with nothing that torch must see."""
    return (
        type(b) is FakeTensor
        and a.dtype is b.dtype
        and a.dtype.is_floating_point
        and a.fake_device == b.fake_device
        and a.fake_mode is b.fake_mode
        and a.layout is torch.strided
        and b.layout is torch.strided
        and not (a.requires_grad or b.requires_grad)
        and not torch.is_autocast_enabled(a.fake_device.type)
    )


def _new(like: FakeTensor, shape: tuple[int, ...]) -> T:
    with torch.utils._mode_utils.no_dispatch():
        return FakeTensor(like.fake_mode, torch.empty(shape, dtype=like.dtype, device="meta"), like.fake_device)
