"""Clocks and other sources of values that no seed repeats, found in the code that `forward` reaches.

Nothing is patched: the names that functions use are looked up. So a call that is written and never made is named too.
"""

from __future__ import annotations

import datetime
import dis
import os
import random
import secrets
import sys
import time
import types
import uuid
from collections.abc import Iterator

import numpy as np
from torch import nn

_TIMES = "time time_ns perf_counter perf_counter_ns monotonic monotonic_ns process_time".split()
_READS = (
    *(getattr(time, name) for name in _TIMES),
    uuid.uuid1, uuid.uuid4, os.urandom, secrets.token_bytes, secrets.token_hex, secrets.randbelow, secrets.choice,
    np.random.default_rng, random.SystemRandom,
)  # fmt: skip
_NOW: dict[object, list[str]] = {datetime.datetime: "now utcnow today".split(), datetime.date: ["today"]}
_WORDS = frozenset([*(read.__name__ for read in _READS), "now", "utcnow", "today"]) - {"choice"}
_HOLDERS = (time, uuid, os, secrets, np, np.random, random, datetime, datetime.datetime, datetime.date)


def clock_reads(model: nn.Module) -> tuple[str, ...]:
    """The clocks that the code of a model's `forward`s names, with their lines: `time.time (model.py:12 in forward)`.

    >>> class Timed(nn.Module):
    ...     def forward(self, x):
    ...         return x * time.time()
    >>> [found.split(" (")[0] for found in clock_reads(Timed())]
    ['time.time']
    """
    found: dict[str, None] = {}
    seen: set[object] = set()
    for klass in dict.fromkeys(map(type, model.modules())):
        stack: list[object] = [getattr(klass, "forward", None)]
        while stack:
            function = stack.pop()
            if not isinstance(function, types.FunctionType) or function in seen or _is_foreign(function):
                continue
            seen.add(function)
            found |= dict.fromkeys(_named_in(function, function.__code__))
            stack += _callees(klass, function)
    return tuple(found)


def _is_foreign(function: types.FunctionType) -> bool:
    return (function.__module__ or "").partition(".")[0] in ("torch", "numpy", "logging")


def _callees(klass: type, function: types.FunctionType) -> Iterator[object]:
    """Functions of the same Python module and methods of the class that a function names."""
    for name in code_names(function.__code__):
        value = function.__globals__.get(name, getattr(klass, name, None))
        if isinstance(value, types.FunctionType) and value.__module__ in (function.__module__, klass.__module__):
            yield value


def code_names(code: types.CodeType) -> Iterator[str]:
    """The global names and attributes that a code object uses, its inner functions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from code_names(constant)


def _named_in(function: types.FunctionType, code: types.CodeType) -> Iterator[str]:
    """Calls that a code object spells out: a global or imported name, and the attributes behind it."""
    names = set(code_names(code))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _named_in(function, constant)
    if names.isdisjoint(_WORDS) and not any(_is_read(function.__globals__.get(n)) for n in names):
        return
    known, value, line, before = dict(function.__globals__), None, code.co_firstlineno, None
    for step in dis.get_instructions(code):
        line = (step.positions and step.positions.lineno) or line
        if step.opname.startswith("LOAD_") and step.argval in known and isinstance(step.argval, str):
            value = known[step.argval] if not step.opname.startswith(("LOAD_ATTR", "LOAD_METHOD")) else _of(value, step)
        elif step.opname.startswith(("LOAD_ATTR", "LOAD_METHOD")):
            value = _of(value, step)
        elif step.opname == "STORE_FAST" and before is not None and before.opname == "IMPORT_NAME":
            known[step.argval] = sys.modules.get(before.argval)
        before, shown = step, _shown(value)
        if shown:
            yield f"{shown} ({code.co_filename.rpartition('/')[2]}:{line} in {code.co_name})"
            value = None


def _of(holder: object, step: dis.Instruction) -> object:
    """An attribute of a module or class; `now` and `today` make a new object each time, so they are a pair."""
    if any(holder is h for h in _HOLDERS):
        return (holder, step.argval) if step.argval in _NOW.get(holder, ()) else getattr(holder, step.argval, None)
    return None


def _shown(value: object) -> str:
    if isinstance(value, tuple) and len(value) == 2 and value[0] in _NOW:
        return f"{value[0].__name__}.{value[1]}"
    return f"{value.__module__}.{getattr(value, '__name__', '')}" if _is_read(value) else ""


def _is_read(value: object) -> bool:
    return any(value is read for read in _READS)
