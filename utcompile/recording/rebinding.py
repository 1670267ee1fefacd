"""While a recording runs, the model's own Python modules use `range`, `len`, `int` … that keep tracked sizes.

Python's C code reads the value of a tracked size, which is a leak: the recording would be right for that value only. So
the globals of the model's modules get twins of these functions, which compute with expressions where their arguments
are tracked numbers, and call the originals otherwise, also in every other thread. Functions of `math` are replaced in
`math` itself.
"""

from __future__ import annotations

import functools
import math
import sys
import types
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from utcompile.recording.active import current, is_nested
from utcompile.recording.caches import CACHED, Caches, without_caches
from utcompile.recording.expressions import Expression
from utcompile.recording.tracked import TrackedFloat, TrackedInt, compute, expression_of, is_tracked, plain

# packages whose code is no model's: torch runs with plain sizes, and the others never see one
_FOREIGN = frozenset(
    {"torch", "numpy", "utcompile", "pytest", "_pytest", "typing_extensions", "onnx", "onnxruntime", "pydantic"}
    | set(sys.stdlib_module_names)
) - {"__main__"}


def _is_on(*values: object) -> bool:
    return current() is not None and any(map(is_tracked, values))


class _RangeType(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, range)

    def __call__(cls, *args: int) -> Sequence[int]:
        if not _is_on(*args):
            return range(*args)
        start, stop, step = (0, args[0], 1) if len(args) == 1 else (*args, 1)[:3]
        length = len(range(*map(plain, args)))
        steps = Expression.of("steps", *map(expression_of, (start, stop, step)))
        _ask("eq", steps, Expression.const(length))
        return [start + i * step for i in range(length)]


class _Range(metaclass=_RangeType):
    """`range` of tracked numbers: its length is a question, its members are expressions."""


def _ask(name: str, *sides: Expression) -> None:
    recorder = current()
    if recorder is not None:
        recorder.questions.ask(Expression.of(name, *sides), True)


def _len(value: Sized) -> int:
    if isinstance(value, torch.Tensor) and current() is not None and value.dim():
        return value.shape[0]
    return len(value)


def _extreme(name: str, original: Callable[..., object]) -> Callable[..., object]:
    def call(*args: object, **kwargs: object) -> object:
        members = list(args[0]) if len(args) == 1 and isinstance(args[0], (tuple, list)) else list(args)
        if kwargs or not _is_on(*members):
            return original(*args, **kwargs)
        return functools.reduce(lambda a, b: compute(name, a, b), members)

    return call


class _NumberType(type):
    """The type of the twins of `int` and `float`: classes that answer as the originals do."""

    original: type[int] | type[float]
    kept: type[TrackedInt] | type[TrackedFloat]
    name: str

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, cls.original)

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, cls.original)

    def __getattr__(cls, name: str) -> object:
        return getattr(cls.original, name)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls.original

    def __hash__(cls) -> int:
        return hash(cls.original)

    def __or__(cls, other: Any) -> Any:
        return cls.original | other

    def __ror__(cls, other: Any) -> Any:
        return other | cls.original

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and _is_on(args[0]):
            return args[0] if type(args[0]) is cls.kept else compute(cls.name, args[0])
        return cls.original(*args, **kwargs)


class _Int(metaclass=_NumberType):
    original, kept, name = int, TrackedInt, "int"


class _Float(metaclass=_NumberType):
    original, kept, name = float, TrackedFloat, "float"


_TWINS: dict[str, object] = {
    "range": _Range, "len": _len, "int": _Int, "float": _Float,
    "min": _extreme("min", min), "max": _extreme("max", max),
}  # fmt: skip
_ORIGINALS: dict[object, object] = {_Int: int, _Float: float}


def original_of(value: object) -> object:
    """`int` for the twin of `int`; any other value as it is."""
    return _ORIGINALS.get(value, value) if isinstance(value, type) else value


def _of_math(name: str, original: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(original)
    def call(*args: object, **kwargs: object) -> object:
        return compute(name, *args) if not kwargs and _is_on(*args) else original(*map(plain, args), **kwargs)

    return call


_MATH = {
    getattr(math, name): _of_math(name, getattr(math, name))
    for name in (
        "sqrt log log2 log10 log1p exp gcd lcm isqrt isclose sin cos tan tanh atan comb copysign fmod hypot"
    ).split()
} | {math.pow: _of_math("math_pow", math.pow)}
_NUMPY = "arange zeros ones full empty linspace array asarray ceil floor sqrt prod log2 log maximum minimum".split()


@functools.lru_cache(maxsize=64)
def _of_numpy(original: Callable[..., object]) -> Callable[..., object]:
    """A function of NumPy sees plain numbers: their values leak."""

    @functools.wraps(original)
    def call(*args: object, **kwargs: object) -> object:
        if current() is None:
            return original(*args, **kwargs)
        return original(*map(_leaked, args), **{k: _leaked(v) for k, v in kwargs.items()})

    return call


def _leaked(value: object) -> object:
    if is_tracked(value):
        return value.leak("array")
    if isinstance(value, (tuple, list)) and any(map(is_tracked, value)):
        return [_leaked(v) for v in value]
    return original_of(value)


@dataclass(frozen=True)
class _Reached:
    """Globals that code can name, and the values that are replaced: functions of `math`, functions with a cache."""

    namespaces: list[dict[str, object]]
    math: list[tuple[dict[str, object], str]]
    caches: Caches

    @classmethod
    def by(cls, namespaces: list[dict[str, object]]) -> _Reached:
        """Look through all values of namespaces."""
        builtin = types.BuiltinFunctionType
        named = [
            (names, name)
            for names in namespaces
            if builtin in set(map(type, names.values()))
            for name, value in names.items()
            if type(value) is builtin and value in _MATH
        ]
        return cls(namespaces, named, Caches.of(namespaces))


def look_anew() -> None:
    """Forget the contents of namespaces: a module may have changed since the last capture."""
    _reached.cache_clear()


def _places(model: nn.Module) -> list[_Reached]:
    """The globals of the code that the model runs: of its classes, and of the functions that these can name."""
    modules = list(model.modules())
    held = [value for m in modules for value in vars(m).values()]  # a patched forward, a function given to it
    find = _reached.__wrapped__ if is_nested() else _reached  # inside of another recording namespaces have twins
    known = find(frozenset(map(type, modules)))
    seen = set(map(id, known.namespaces))
    own = {id(f.__globals__): f.__globals__ for f in held if isinstance(f, types.FunctionType)}
    return [known, _Reached.by([names for at, names in own.items() if at not in seen and not _is_foreign(names)])]


def _is_foreign(names: dict[str, object]) -> bool:
    return str(names.get("__name__", "")).partition(".")[0] in _FOREIGN


@functools.lru_cache(maxsize=4)  # the recordings of one capture have the same classes
def _reached(classes: frozenset[type]) -> _Reached:
    found: dict[int, dict[str, object]] = {}
    stack = [
        function.__globals__
        for cls in {c for one in classes for c in one.__mro__}
        if cls.__module__.partition(".")[0] not in _FOREIGN
        for function in vars(cls).values()
        if isinstance(function, types.FunctionType)
    ]
    while stack:
        names = stack.pop()
        if id(names) in found or _is_foreign(names):
            continue
        found[id(names)] = names
        for value in list(names.values()):
            if isinstance(value, CACHED):
                value = value.__wrapped__
            if isinstance(value, types.FunctionType):
                stack.append(value.__globals__)
            elif isinstance(value, types.ModuleType):
                stack.append(vars(value))
    return _Reached.by(list(found.values()))


def _own_classes(model: nn.Module) -> list[type]:
    classes = {c for kind in set(map(type, model.modules())) for c in kind.__mro__}
    return [c for c in classes if c.__module__.partition(".")[0] not in _FOREIGN]


@contextmanager
def rebound(model: nn.Module) -> Iterator[None]:
    """Give the model's modules the twins, for as long as a recording runs."""
    old: list[tuple[dict[str, object], str, object]] = []
    added: list[tuple[dict[str, object], dict[str, object]]] = []
    places = _places(model)

    def put(names: dict[str, object], name: str, value: object) -> None:
        old.append((names, name, names[name]))
        names[name] = value

    try:
        for original, twin in _MATH.items():
            put(vars(math), original.__name__, twin)
        for name in _NUMPY:
            put(vars(np), name, _of_numpy(getattr(np, name)))
        for names, name in [one for place in places for one in place.math]:
            if type(names.get(name)) is types.BuiltinFunctionType and names[name] in _MATH:
                put(names, name, _MATH[names[name]])
        for names in [names for place in places for names in place.namespaces]:
            twins = _TWINS if _TWINS.keys().isdisjoint(names) else {n: t for n, t in _TWINS.items() if n not in names}
            added.append((names, twins))
            names.update(twins)
        of_instances = Caches.of([*map(vars, model.modules())])
        with without_caches(_own_classes(model), [*(place.caches for place in places), of_instances]):
            yield
    finally:
        for names, twins in added:
            for name in twins:
                names.pop(name, None)
        for names, name, value in reversed(old):
            names[name] = value
