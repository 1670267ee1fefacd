"""Copies of Python functions."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import TypeVar, cast

F = TypeVar("F", bound=Callable[..., object])


def copied(function: F, **names: object) -> F:
    """A function with its own code object, for which some global names may mean other objects.

    Args:
        function: written in Python.
        names: the objects, by the names that the copy finds them under.

    >>> def greet(): return str(1)
    >>> copied(greet, str=float)(), greet()
    (1.0, '1')
    """
    assert isinstance(function, types.FunctionType)
    scope = {**function.__globals__, **names} if names else function.__globals__
    code, defaults, closure = function.__code__.replace(), function.__defaults__, function.__closure__
    made = types.FunctionType(code, scope, function.__name__, defaults, closure)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(function.__dict__)
    return cast(F, made)
