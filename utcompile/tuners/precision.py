"""Tuners in float32 on a base in half precision: they compute in their dtype, and their result has their input's.

An update of 1e-4 is lost in a bfloat16 weight of 1, and a gradient below 6e-8 in float16. So trained parameters are
float32 by default, as with PEFT's `autocast_adapter_dtype`. Where all dtypes are equal, this module changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Protocol, TypeVar, cast

import torch
from torch import nn

HALVES = (torch.float16, torch.bfloat16)
# looked up once: torch 2.11's compiler does not trace the question
_AUTOCASTING = frozenset(d for d in ("cpu", "cuda", "mps", "xpu", "hpu", "mtia") if torch.amp.is_autocast_available(d))


_Forward = TypeVar("_Forward", bound=Callable[..., object])
Changed = torch.Tensor | tuple[torch.Tensor | None, ...]  # a weight, or the parameters of several roles


class ChangesWeights(Protocol):
    """A weight tuner as this module uses it: `Tuner` cannot be imported, because it is built on this module."""

    def changed(self, *parameters: torch.Tensor | None) -> Changed:
        """The changed parameters."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """The tuner's own parameters."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The tuner's own parameters by name."""


def in_own_dtype(forward: _Forward) -> _Forward:
    """Run a tuner's `forward` in the dtype of its parameters where its inputs are in half precision."""

    @wraps(forward)
    def run(self: nn.Module, *args: object, **kwargs: object) -> object:
        first = _half_tensor((*args, *kwargs.values()))
        own = None if first is None else own_dtype(self)
        if first is None or own is None or own == first.dtype:
            return forward(self, *args, **kwargs)
        if _autocasts(first.device.type):  # it casts the inputs, and a product with a scale would stay in float32
            return _cast(forward(self, *args, **kwargs), own, first.dtype)
        named = {k: _cast(v, first.dtype, own) for k, v in kwargs.items()}
        return _cast(forward(self, *(_cast(a, first.dtype, own) for a in args), **named), own, first.dtype)

    return cast(_Forward, run)


def changed_in_own_dtype(tuner: ChangesWeights, *parameters: torch.Tensor | None) -> Changed:
    """Compute `tuner.changed` of parameters in half precision in the tuner's dtype, and round the result once."""
    first = _half_tensor(parameters)
    own = None if first is None else own_dtype(tuner)
    if first is None or own is None or own == first.dtype:
        return tuner.changed(*parameters)
    given = [None if p is None else _converted(p, first.dtype, own) for p in parameters]
    result = tuner.changed(*given)
    if isinstance(result, tuple):
        return tuple(None if r is None else _converted(r, own, first.dtype) for r in result)
    return _converted(result, own, first.dtype)


def _half_tensor(values: tuple[object, ...]) -> torch.Tensor | None:
    """The first floating-point tensor among values, where it is in half precision."""
    for value in values:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value if value.dtype in HALVES else None
    return None


def _autocasts(device: str) -> bool:
    return device in _AUTOCASTING and torch.is_autocast_enabled(device)


def own_dtype(tuner: ChangesWeights | nn.Module) -> torch.dtype | None:
    """The dtype of a tuner's first floating-point parameter."""
    for parameter in tuner.parameters():
        if parameter.is_floating_point():
            return parameter.dtype
    return None


def _converted(value: torch.Tensor, before: torch.dtype, after: torch.dtype) -> torch.Tensor:
    return value.to(after) if value.dtype == before else value


def _cast(value: object, before: torch.dtype, after: torch.dtype) -> object:
    if isinstance(value, torch.Tensor):
        return _converted(value, before, after)
    if isinstance(value, (tuple, list)):
        return type(value)(_cast(v, before, after) for v in value)
    return value
