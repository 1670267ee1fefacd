"""Results of products of fake tensors without torch's own detour: it views, transposes, multiplies and views again.

A product of plain fakes is a new contiguous tensor whose shape is known. Wherever more than that is so (another class,
mixed dtypes or devices, autocast, gradients, an error that torch must raise), torch answers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

T = torch.Tensor
_PRODUCTS = frozenset([torch.matmul, T.matmul, T.__matmul__])


def linear(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> T | None:
    """What an `nn.Linear` yields: (..., in) -> (..., out); None where torch must answer."""
    if type(module) is not nn.Linear or len(args) != 1 or kwargs:
        return None
    x, weight, bias = args[0], module.weight, module.bias
    if not _alike(x, weight) or not (bias is None or _alike(x, bias)) or x.dim() < 2:
        return None
    shape = x.shape
    if weight.dim() != 2 or shape[-1] != weight.shape[1] or not (bias is None or bias.shape == weight.shape[:1]):
        return None
    return _new(x, (*shape[:-1], weight.shape[0]))


def product(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> T | None:
    """What `matmul` of two batches of as many dimensions yields; None where torch must answer."""
    if function not in _PRODUCTS or len(args) != 2 or kwargs or not _alike(*args):
        return None
    left, right = args[0].shape, args[1].shape
    if len(left) != len(right) or len(left) < 3 or left[-1] != right[-2] or left[:-2] != right[:-2]:
        return None
    return _new(args[0], (*left[:-1], right[-1]))


def _alike(a: Any, b: Any) -> bool:
    return (
        type(a) is FakeTensor
        and type(b) is FakeTensor
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
