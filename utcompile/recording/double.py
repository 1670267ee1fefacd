"""Calls in float64: whether a difference between a model and its capture is the rounding of other kernels.

Two kernels that add in another order differ by roundings. In float64 these are 1e-9 of what they are in float32; a
difference of any other origin, such as another constant, stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.overrides import TorchFunctionMode

from utcompile.graph.nested import map_tensors

T = torch.Tensor
SMALL = 1e-4  # of the largest value: a larger difference in float32 is no rounding of kernels
ROUNDED = 1e-12  # of the largest value, in float64
_TWICE = {torch.float32: torch.float64, torch.complex64: torch.complex128}


class InFloat64(TorchFunctionMode):
    """Torch calls that name float32 get float64 instead.

    >>> with InFloat64():
    ...     torch.ones(2).to(torch.float32).dtype, torch.ones(2).double().float().dtype
    (torch.float64, torch.float64)
    """

    def __torch_function__(
        self,
        function: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        called: Callable[..., object] = T.double if function is T.float else function
        return called(*map(_dtype, args), **{name: _dtype(value) for name, value in (kwargs or {}).items()})


def in_float64(arguments: dict[str, object]) -> dict[str, object]:
    """The arguments of a call, with float32 numbers as float64."""
    return map_tensors(lambda t: t.to(_TWICE.get(t.dtype, t.dtype)), arguments)


def _dtype(value: object) -> object:
    return _TWICE.get(value, value) if isinstance(value, torch.dtype) else value
