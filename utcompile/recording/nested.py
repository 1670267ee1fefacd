"""Tensors in nested values: containers, dataclasses, `ModelOutput`s and other objects that hold them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

T = torch.Tensor


def parts(value: Any) -> list[tuple[Any, Any]]:
    """What a value holds, with the key, index or attribute to find it by; of objects only what may hold tensors."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if isinstance(value, (T, nn.Module, type)) or callable(value) or not hasattr(value, "__dict__"):
        return []
    return [(k, v) for k, v in vars(value).items() if isinstance(v, (T, tuple, list, dict)) or parts(v)]


def is_named_tuple(value: Any) -> bool:
    """Whether a value is a named tuple, or one of torch's own such as `torch.max(x, 0)`."""
    return isinstance(value, tuple) and (hasattr(value, "_fields") or type(value).__module__ == "torch.return_types")


def flat(value: Any) -> list[T]:
    """The tensors in a call's arguments or result: containers only, quickly."""
    found: list[T] = []
    _collect(value, found)
    return found


def _collect(value: Any, found: list[T]) -> None:
    if isinstance(value, T):
        found.append(value)
    elif isinstance(value, (tuple, list)):
        for v in value:
            _collect(v, found)
    elif isinstance(value, dict):
        for v in value.values():
            _collect(v, found)


def tensors(value: Any) -> list[T]:
    """The tensors of a nested value, in order; those in objects too."""
    if isinstance(value, T):
        return [value]
    return [t for _, part in parts(value) for t in tensors(part)]


def map_tensors(function: Callable[[T], T], value: Any) -> Any:
    """The same nested value with each tensor replaced; what holds no tensor is left as it is.

    >>> map_tensors(lambda t: t + 1, {"a": [torch.zeros(1), 3]})
    {'a': [tensor([1.]), 3]}
    """
    if isinstance(value, T):
        return function(value)
    if not tensors(value):
        return value
    if isinstance(value, tuple):
        mapped = [map_tensors(function, v) for v in value]
        if not is_named_tuple(value):
            return tuple(mapped)
        return type(value)(*mapped) if hasattr(value, "_fields") else type(value)(mapped)
    if isinstance(value, list):
        return [map_tensors(function, v) for v in value]
    made = copy.copy(value)
    for name, part in parts(value):
        if isinstance(value, dict):
            made[name] = map_tensors(function, part)
        else:
            object.__setattr__(made, name, map_tensors(function, part))
    return made
