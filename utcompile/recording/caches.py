"""Functions with a cache (`functools.lru_cache`) run without it while a recording runs.

A cache would hash the sizes of the recording as keys, which reads their values, and keep them for later calls. A cache
only saves time, so the function itself gives the same result.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from utcompile.recording.places import content, function_in

CACHED = type(functools.lru_cache(abs))
_WRAPPERS = (types.FunctionType, staticmethod, classmethod, property, functools.partial, CACHED)


@dataclass(frozen=True)
class Caches:
    """The functions with a cache in namespaces: under their names, and in the closures of decorators.

    Looking for them takes longer than a recording of a small model: it is done once in a capture.
    """

    names: list[tuple[dict[str, object], str]]
    cells: list[types.CellType]

    @classmethod
    def of(cls, namespaces: Sequence[dict[str, object]]) -> Caches:
        """Look through all values of namespaces."""
        names = [
            (held, name)
            for held in namespaces
            if CACHED in set(map(type, held.values()))
            for name, value in held.items()
            if type(value) is CACHED
        ]
        return cls(names, _cells(namespaces))


@contextmanager
def without_caches(holders: Sequence[type], known: Sequence[Caches]) -> Iterator[None]:
    """Put the functions in the place of their cached forms: in classes, in modules, and in the closures of decorators.

    Args:
        holders: classes whose methods the model calls.
        known: those of the globals that its code reads.
    """
    names = [(held, n, f) for found in known for held, n in found.names if type(f := held.get(n)) is CACHED]
    methods = [
        (cls, name, held) for cls in holders for name, held in list(vars(cls).items()) if _bare(held) is not None
    ]
    closures = [cell for found in known for cell in found.cells] + _cells([*map(vars, holders)])
    cells = [(cell, found) for cell in closures if type(found := content(cell)) is CACHED]
    try:
        for held, name, cached in names:
            held[name] = cached.__wrapped__
        for cls, name, method in methods:
            setattr(cls, name, _bare(method))
        for cell, cached in cells:
            cell.cell_contents = cached.__wrapped__
        yield
    finally:
        for cell, cached in cells:
            cell.cell_contents = cached
        for cls, name, method in methods:
            setattr(cls, name, method)
        for held, name, cached in names:
            held[name] = cached


def _bare(held: object) -> object:
    """A value of a class without its cache; None where it has none."""
    if type(held) is CACHED:
        return held.__wrapped__
    if isinstance(held, (staticmethod, classmethod)) and type(held.__func__) is CACHED:
        return type(held)(held.__func__.__wrapped__)
    if isinstance(held, property) and type(held.fget) is CACHED:
        return property(held.fget.__wrapped__, held.fset, held.fdel, held.__doc__)
    return None


def _cells(namespaces: Iterable[Mapping[str, object]]) -> list[types.CellType]:
    """The variables of closures that contain a function with a cache: a decorator keeps it there."""
    stack = [f for names in namespaces for value in _wrappers(names) if (f := function_in(value)) is not None]
    seen: dict[int, types.CellType] = {}
    found = []
    while stack:
        for cell in stack.pop().__closure__ or ():
            value = content(cell)
            if id(cell) in seen:
                continue
            seen[id(cell)] = cell
            if type(value) is CACHED:
                found.append(cell)
            function = function_in(value)
            if function is not None:
                stack.append(function)
    return found


def _wrappers(names: Mapping[str, object]) -> list[object]:
    """Values that may be or contain a function with a closure: a few of the thousands that are looked at."""
    values = list(names.values())
    kinds = {kind for kind in set(map(type, values)) if issubclass(kind, _WRAPPERS)}
    if not kinds:
        return []
    plain = types.FunctionType
    return [v for v in values if type(v) in kinds and (type(v) is not plain or v.__closure__)]
