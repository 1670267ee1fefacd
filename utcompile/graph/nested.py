"""Tensors in nested values: containers, dataclasses, `ModelOutput`s and other objects that contain them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TypeGuard, TypeVar, cast

import torch
from torch import nn

T = torch.Tensor
V = TypeVar("V")


def parts(value: object) -> list[tuple[object, object]]:
    """The members of a value, each with its key, index or attribute; of objects only those that may contain tensors."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if isinstance(value, (T, nn.Module, type)) or callable(value) or not hasattr(value, "__dict__"):
        return []
    return [(k, v) for k, v in vars(value).items() if isinstance(v, (T, tuple, list, dict)) or parts(v)]


def is_named_tuple(value: object) -> TypeGuard[tuple[object, ...]]:
    """Whether a value is a named tuple, or one of torch's own such as `torch.max(x, 0)`."""
    return isinstance(value, tuple) and (hasattr(value, "_fields") or type(value).__module__ == "torch.return_types")


def flat(value: object) -> list[T]:
    """The tensors in a call's arguments or result: containers only, quickly."""
    found: list[T] = []
    _collect(value, found)
    return found


def _collect(value: object, found: list[T]) -> None:
    if isinstance(value, T):
        found.append(value)
    elif isinstance(value, (tuple, list)):
        for v in value:
            _collect(v, found)
    elif isinstance(value, dict):
        for v in value.values():
            _collect(v, found)


def tensors(value: object) -> list[T]:
    """The tensors of a nested value, in order; those in objects too."""
    if isinstance(value, T):
        return [value]
    return [t for _, part in parts(value) for t in tensors(part)]


def alike(a: object, b: object, same: Callable[[object, object], bool]) -> bool:
    """Whether two nested arguments have one structure, and `same` is true of each pair of leaves."""
    if isinstance(b, (tuple, list)):
        if not isinstance(a, (tuple, list)) or len(a) != len(b):
            return False
        return all(alike(x, y, same) for x, y in zip(a, b, strict=True))
    if isinstance(b, dict):
        return isinstance(a, dict) and a.keys() == b.keys() and all(alike(a[k], v, same) for k, v in b.items())
    if isinstance(b, slice):
        ends = ("start", "stop", "step")
        return isinstance(a, slice) and all(alike(getattr(a, e), getattr(b, e), same) for e in ends)
    return same(a, b)


def tuple_like(value: tuple[object, ...], members: Iterable[object]) -> tuple[object, ...]:
    """A tuple with other members: of the same class where that is a named one, else a plain one."""
    build: Callable[..., tuple[object, ...]] = type(value) if is_named_tuple(value) else tuple
    return build(*members) if hasattr(value, "_fields") else build(members)


def map_tensors(function: Callable[[T], T], value: V) -> V:
    """The same nested value with each tensor replaced; what contains no tensor is left as it is.

    >>> map_tensors(lambda t: t + 1, {"a": [torch.zeros(1), 3]})
    {'a': [tensor([1.]), 3]}
    """
    return cast(V, _mapped(function, value))


def _mapped(function: Callable[[T], T], value: object) -> object:
    if isinstance(value, T):
        return function(value)
    if not tensors(value):
        return value
    if isinstance(value, tuple):
        return tuple_like(value, [_mapped(function, v) for v in value])
    if isinstance(value, list):
        return [_mapped(function, v) for v in value]
    made = copy.copy(value)
    for name, part in parts(value):
        if isinstance(made, dict):
            made[name] = _mapped(function, part)
        else:
            object.__setattr__(made, str(name), _mapped(function, part))
    return made
