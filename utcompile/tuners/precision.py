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
        given = half_given((*args, *kwargs.values()))
        if given is None or torch.is_autocast_enabled(args[0].device.type):
            return forward(self, *args, **kwargs)
        own = own_dtype(self)
        if own is None or own == given:
            return forward(self, *args, **kwargs)
        result = forward(
            self, *(_cast(a, given, own) for a in args), **{k: _cast(v, given, own) for k, v in kwargs.items()}
        )
        return _cast(result, own, given)

    return run


def changed_in_own_dtype(tuner: Any, *parameters: torch.Tensor | None) -> Any:
    """What a weight tuner makes of parameters in half precision, computed in its own dtype and rounded once."""
    given = half_given(parameters)
    own = own_dtype(tuner) if given is not None else None
    if given is None or own is None or own == given:
        return tuner.changed(*parameters)
    return _cast(tuner.changed(*(_cast(p, given, own) for p in parameters)), own, given)


def half_given(values: tuple[Any, ...]) -> torch.dtype | None:
    """The half-precision dtype of the first floating-point tensor among values; None where it has another."""
    for value in values:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.dtype if value.dtype in HALVES else None
    return None


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
