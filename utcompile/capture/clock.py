"""Clocks and other sources of values that no seed repeats, found in the code that `forward` reaches.

Nothing is patched: the names that functions use are looked up. So a call that is written and never made is named too.
"""

from __future__ import annotations

import datetime
import os
import random
import secrets
import time
import types
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import nn

_READS = {
    *(getattr(time, n) for n in "time time_ns perf_counter perf_counter_ns monotonic monotonic_ns process_time".split()),
    uuid.uuid1, uuid.uuid4, os.urandom, secrets.token_bytes, secrets.token_hex, secrets.randbelow, secrets.choice,
    np.random.default_rng, random.SystemRandom,
}  # fmt: skip
_NOW = {datetime.datetime: "now utcnow today".split(), datetime.date: ["today"]}
_HOLDERS = (time, uuid, os, secrets, np, np.random, random, datetime, datetime.datetime, datetime.date)


def clock_reads(model: nn.Module) -> tuple[str, ...]:
    """What the code of a model's `forward`s names, with its line: `time.time (model.py:12 in forward)`.

    >>> class Timed(nn.Module):
    ...     def forward(self, x):
    ...         return x * time.time()
    >>> [found.split(" (")[0] for found in clock_reads(Timed())]
    ['time.time']
    """
    found: dict[str, None] = {}
    seen: set[Any] = set()
    for klass in dict.fromkeys(map(type, model.modules())):
        stack = [klass.forward]
        while stack:
            function = stack.pop()
            if not isinstance(function, types.FunctionType) or function in seen or _is_foreign(function):
                continue
            seen.add(function)
            found |= dict.fromkeys(_named_in(function, function.__code__))
            stack += _callees(klass, function)
    return tuple(found)


def _is_foreign(function: types.FunctionType) -> bool:
    return function.__module__.partition(".")[0] in ("torch", "numpy", "logging")


def _callees(klass: type, function: types.FunctionType) -> Iterator[Any]:
    """Functions of the same Python module and methods of the class that a function names."""
    for name in _names(function.__code__):
        value = function.__globals__.get(name, getattr(klass, name, None))
        if isinstance(value, types.FunctionType) and value.__module__ in (function.__module__, klass.__module__):
            yield value


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _named_in(function: types.FunctionType, code: types.CodeType) -> Iterator[str]:
    names = list(_names(code))
    where = f"({code.co_filename.rpartition('/')[2]}:{code.co_firstlineno} in {code.co_name})"
    for name in names:
        value = function.__globals__.get(name)
        if _is_read(value):
            yield f"{value.__module__}.{value.__name__} {where}"  # type: ignore[union-attr]
        if any(value is holder for holder in _HOLDERS):
            yield from (f"{shown} {where}" for shown in _attributes(value, names))


def _attributes(holder: Any, names: list[str]) -> Iterator[str]:
    """The reads that are attributes of a module or class, two steps deep (`np.random.default_rng`, `datetime.datetime.now`)."""
    for name in names:
        value = getattr(holder, name, None)
        if _is_read(value) or name in _NOW.get(holder, ()):
            yield f"{holder.__name__}.{name}"
        elif value is not holder and any(value is h for h in _HOLDERS):
            yield from _attributes(value, names)


def _is_read(value: Any) -> bool:
    try:
        return value in _READS
    except TypeError:  # it has no hash
        return False
