"""Tuners in float32 on a base in half precision: they compute in their dtype, and their result has their input's.

An update of 1e-4 is lost in a bfloat16 weight of 1, and a gradient below 6e-8 in float16. So trained parameters are
float32 by default, as with PEFT's `autocast_adapter_dtype`. Where all dtypes are equal, this module changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn

HALVES = (torch.float16, torch.bfloat16)


def in_own_dtype(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Run a tuner's `forward` in the dtype of its parameters where its inputs are in half precision."""

    @wraps(forward)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        first = _half_tensor((*args, *kwargs.values()))
        own = None if first is None else own_dtype(self)
        if first is None or own is None or own == first.dtype or _autocasts(first.device.type):
            return forward(self, *args, **kwargs)
        named = {k: _cast(v, first.dtype, own) for k, v in kwargs.items()}
        return _cast(forward(self, *(_cast(a, first.dtype, own) for a in args), **named), own, first.dtype)

    return run


def changed_in_own_dtype(tuner: Any, *parameters: torch.Tensor | None) -> Any:
    """Compute `tuner.changed` of parameters in half precision in the tuner's dtype, and round the result once."""
    first = _half_tensor(parameters)
    own = None if first is None else own_dtype(tuner)
    if first is None or own is None or own == first.dtype:
        return tuner.changed(*parameters)
    return _cast(tuner.changed(*(_cast(p, first.dtype, own) for p in parameters)), own, first.dtype)


def _half_tensor(values: tuple[Any, ...]) -> torch.Tensor | None:
    """The first floating-point tensor among values, where it is in half precision."""
    for value in values:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value if value.dtype in HALVES else None
    return None


def _autocasts(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def own_dtype(tuner: nn.Module) -> torch.dtype | None:
    """The dtype of a tuner's first floating-point parameter."""
    for parameter in tuner.parameters():
        if parameter.is_floating_point():
            return parameter.dtype
    return None


def _cast(value: Any, before: torch.dtype, after: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(after) if value.dtype == before else value
    if isinstance(value, (tuple, list)):
        return type(value)(_cast(v, before, after) for v in value)
    return value
