"""Tensors and modules in the precision of a proof."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def in_float64(name: str, state: torch.Tensor) -> torch.Tensor:
    """A parameter or buffer in float64, on the CPU whatever device the model is on."""
    return in_precision(state.detach().cpu(), torch.float64)


def in_precision(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Floating-point and complex numbers in a precision, given as a real dtype; others as they are.

    A tensor of a quantiser's class becomes the numbers that it stands for.

    >>> in_precision(torch.ones(1, dtype=torch.complex64), torch.float64).dtype
    torch.complex128
    """
    if is_traceable_wrapper_subclass(tensor):
        tensor = tensor.dequantize()
    if tensor.is_complex():
        return tensor.to(torch.complex128 if dtype == torch.float64 else torch.complex64)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def as_real(tensor: torch.Tensor) -> torch.Tensor:
    """Complex numbers as pairs of real ones; real ones as they are."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def double_copy(module: nn.Module) -> nn.Module:
    """A copy of a module on the CPU, in eval, in float64 and complex128."""
    copied = copy.deepcopy(module).cpu().eval()
    for owner in copied.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                owner._parameters[name] = nn.Parameter(in_float64(name, parameter), requires_grad=False)
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[name] = in_float64(name, buffer)
    return copied
