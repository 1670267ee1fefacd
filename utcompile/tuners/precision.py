"""Tuners in float32 beside a base in half precision: they compute in their own dtype, and yield their input's.

An update of 1e-4 is lost in a bfloat16 weight of 1, and a gradient below 6e-8 in float16; so what trains is float32 by
default, as PEFT's `autocast_adapter_dtype` has it. Where everything has one dtype, nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn

HALVES = (torch.float16, torch.bfloat16)


def in_own_dtype(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A tuner's `forward` in the dtype of its parameters where its inputs are in half precision."""

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
    """What a weight tuner makes of parameters in half precision, computed in its own dtype and rounded once."""
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
