"""Functions with a cache (`functools.lru_cache`) run without it while a recording runs.

A cache is asked with the sizes of the recording: it would hash them, which reads their values, and keep them for later
calls. What it saves is time, so the function itself says the same.
"""

from __future__ import annotations

import functools
import types
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

CACHED = type(functools.lru_cache(abs))
# what namespaces hold most, sorted out quickly
_NO_FUNCTIONS = frozenset([type, types.ModuleType, str, int, float, bool, type(None), dict, list, tuple, OrderedDict])


@contextmanager
def without_caches(holders: Sequence[type], namespaces: Sequence[dict[str, Any]]) -> Iterator[None]:
    """Put the functions in the place of their cached forms: in classes, in modules, and in the closures of decorators.

    Args:
        holders: classes whose methods the model calls.
        namespaces: globals that its code reads.
    """
    with ExitStack() as undo:
        for names in namespaces:
            for name, cached in [(n, v) for n, v in names.items() if type(v) is CACHED]:
                names[name] = cached.__wrapped__
                undo.callback(names.__setitem__, name, cached)
        for cls in holders:
            for name, held in list(vars(cls).items()):
                bare = _bare(held)
                if bare is not None:
                    setattr(cls, name, bare)
                    undo.callback(setattr, cls, name, held)
        for cell in _cells([*map(vars, holders), *namespaces]):
            cached, cell.cell_contents = cell.cell_contents, cell.cell_contents.__wrapped__
            undo.callback(_fill, cell, cached)
        yield


def _bare(held: Any) -> Any:
    """What a class holds, without its cache; None where it has none."""
    if type(held) is CACHED:
        return held.__wrapped__
    if isinstance(held, (staticmethod, classmethod)) and type(held.__func__) is CACHED:
        return type(held)(held.__func__.__wrapped__)
    if isinstance(held, property) and type(held.fget) is CACHED:
        return property(held.fget.__wrapped__, held.fset, held.fdel, held.__doc__)
    return None


def _cells(namespaces: Iterable[Any]) -> list[types.CellType]:
    """The variables of closures that hold a function with a cache: a decorator keeps it there."""
    held = [value for names in namespaces for value in names.values() if type(value) not in _NO_FUNCTIONS]
    stack = [f for value in held for f in _functions(value)]
    seen: dict[int, types.CellType] = {}
    found = []
    while stack:
        for cell in stack.pop().__closure__ or ():
            content = _content(cell)
            if id(cell) in seen:
                continue
            seen[id(cell)] = cell
            if type(content) is CACHED:
                found.append(cell)
            stack += _functions(content)
    return found


def _functions(value: Any) -> list[Callable[..., Any]]:
    """The Python functions behind what a namespace holds."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    elif isinstance(value, functools.partial):
        value = value.func
    return [value] if isinstance(value, types.FunctionType) and value.__closure__ else []


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # an empty cell
        return None


def _fill(cell: types.CellType, content: Any) -> None:
    cell.cell_contents = content
