"""Numbers that remember how they were computed from sizes, for as long as a recording runs.

Python decides much by sizes: `//`, `min`, `range`, `if`. A size that a recording hands out is a `torch.SymInt` of our
own that says it is an `int`: torch's argument parsers take it, and Python's own C code (`range`, indexing, hashing)
must ask it for its value, so that no use of it goes unseen; a subclass of `int` would be used in silence. None of
torch's symbolic shapes takes part: tensors and shapes stay static.

A number tells the recorder of its thread two things: *questions* (comparisons, with their answers), and *leaks* (its
value went where it is not seen any more). Outside of its recording it must never be met: see `survivors.release`.
"""

from __future__ import annotations

import math
import operator
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor

from utcompile.recording.active import current
from utcompile.recording.expressions import FUNCTIONS, Expression

_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_REFLECTED = {"eq": "eq", "ne": "ne", "lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}
_BINARY = "add sub mul truediv floordiv mod pow lshift rshift and_ or_ xor".split()


class _Made(threading.local):
    """The tracked numbers of a thread, by identity."""

    def __init__(self) -> None:
        self.numbers: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


_MADE = _Made()


class _Value:
    """What torch's C++ code asks of a `SymInt`."""

    constant = None

    def __init__(self, value: Any) -> None:
        self.value = self.hint = value

    def is_int(self) -> bool:
        return isinstance(self.value, int)

    def is_float(self) -> bool:
        return isinstance(self.value, float)

    def is_bool(self) -> bool:
        return False

    def is_nested_int(self) -> bool:
        return False

    def is_symbolic(self) -> bool:
        return True

    def is_constant(self) -> bool:
        return False

    def has_hint(self) -> bool:
        return True

    def maybe_as_int(self) -> Any:
        return self.value

    def guard_int(self, file: str, line: int) -> Any:
        return self.value

    guard_float = guard_int

    def int_(self) -> Any:
        return self.value

    float_ = int_

    def _graph_repr(self) -> str:
        return str(self.value)

    str = _graph_repr


class _Tracked:
    """What whole numbers and floats have in common."""

    value: Any
    expression: Expression

    def __init__(self, value: Any, expression: Expression) -> None:
        super().__init__(_Value(value))  # type: ignore[call-arg]
        self.value, self.expression = value, expression
        _MADE.numbers[id(self)] = self

    def _leak(self, how: str) -> Any:
        recorder = current()
        if recorder is not None:
            recorder.questions.leak(how, self.expression, self.value)
        return self.value

    def __index__(self) -> int:
        return int(self._leak("index"))

    def __int__(self) -> int:
        return int(self._leak("int"))

    def __float__(self) -> float:
        return float(self._leak("float"))

    def __complex__(self) -> complex:
        return complex(self._leak("complex"))

    def __hash__(self) -> int:
        return hash(self._leak("hash"))

    def __bool__(self) -> bool:
        return bool(ask("ne", self, 0))

    def __repr__(self) -> str:
        return repr(self._leak("text"))

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(self._leak("text"), spec)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.asarray(self._leak("array"), dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        for a in args:
            if isinstance(a, _Tracked):
                a._leak("array")
        return getattr(ufunc, method)(*map(plain, args), **kwargs)

    def __reduce__(self) -> Any:
        return type(self.value), (self._leak("pickle"),)

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __round__(self, digits: Any = None) -> Any:
        return compute("round", self) if digits is None else compute("round_to", self, digits)

    def __divmod__(self, other: Any) -> Any:
        return compute("floordiv", self, other), compute("mod", self, other)

    def __rdivmod__(self, other: Any) -> Any:
        return compute("floordiv", other, self), compute("mod", other, self)

    def __pow__(self, other: Any, modulus: Any = None) -> Any:
        power = compute("pow", self, other)
        return power if modulus is None else compute("mod", power, modulus)

    def __rpow__(self, other: Any) -> Any:
        return compute("pow", other, self)


def _define_operators() -> None:
    def unary(name: str) -> Callable[[Any], Any]:
        return lambda self: compute(name, self)

    def binary(name: str) -> tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]:
        return (lambda self, other: compute(name, self, other)), (lambda self, other: compute(name, other, self))

    def comparison(name: str) -> Callable[[Any, Any], Any]:
        return lambda self, other: ask(name, self, other)

    for name in ("neg", "pos", "abs", "invert", "floor", "ceil", "trunc"):
        setattr(_Tracked, f"__{name}__", unary(name))
    for name in _BINARY:
        if name != "pow":
            forward, reflected = binary(name)
            setattr(_Tracked, f"__{name.strip('_')}__", forward)
            setattr(_Tracked, f"__r{name.strip('_')}__", reflected)
    for name in _COMPARISONS:
        setattr(_Tracked, f"__{name}__", comparison(name))


_define_operators()


class TrackedInt(_Tracked, torch.SymInt):
    """A whole number that remembers; `isinstance(x, int)` holds."""

    __class__ = property(lambda self: int)
    __hash__ = _Tracked.__hash__
    real = numerator = property(lambda self: self)
    imag = property(lambda self: 0)
    denominator = property(lambda self: 1)

    def bit_length(self) -> Any:
        return compute("bit_length", self)

    def is_integer(self) -> bool:
        return True

    def conjugate(self) -> Any:
        return self

    def as_integer_ratio(self) -> Any:
        return self, 1


class TrackedFloat(_Tracked, torch.SymFloat):
    """A float that remembers; `isinstance(x, float)` holds."""

    __class__ = property(lambda self: float)
    __hash__ = _Tracked.__hash__

    def is_integer(self) -> bool:
        return bool(compute("is_integer", self))

    def conjugate(self) -> Any:
        return self


_KINDS = (TrackedInt, TrackedFloat)
_ATOMS = frozenset(
    [torch.Tensor, torch.nn.Parameter, FakeTensor, bool, int, float, str, type(None), torch.dtype, torch.device]
)


class Sizes(tuple[Any, ...]):
    """The shape of a tensor, of tracked sizes; it says that it is a `torch.Size`, whose `numel` would not ask."""

    __slots__ = ()
    __class__ = property(lambda self: torch.Size)

    def numel(self) -> Any:
        return math.prod(self)

    def __getitem__(self, index: Any) -> Any:
        found = tuple.__getitem__(self, index)
        return Sizes(found) if isinstance(index, slice) else found

    def __add__(self, other: Any) -> Any:
        return Sizes(tuple.__add__(self, tuple(other)))

    def __radd__(self, other: Any) -> Any:
        return Sizes((*other, *self))

    def __mul__(self, times: Any) -> Any:
        return Sizes(tuple.__mul__(self, times))

    __rmul__ = __mul__

    def __reduce__(self) -> Any:
        return torch.Size, (plain(tuple(self)),)

    def __deepcopy__(self, memo: Any) -> Any:
        return self


def is_tracked(value: Any) -> bool:
    """Whether a number remembers."""
    return type(value) in _KINDS


def tracked(value: Any, expression: Expression) -> Any:
    """A number that remembers; booleans and what is no number stay as they are."""
    if type(value) is int:
        return TrackedInt(value, expression)
    return TrackedFloat(value, expression) if type(value) is float else value


def expression_of(value: Any) -> Expression:
    """How a number was computed; a number that is not tracked is a constant."""
    return value.expression if type(value) in _KINDS else Expression.const(value)


def plain(value: Any) -> Any:
    """A value without tracked numbers in it; the same object where there are none."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind in _KINDS:
        return value.value
    if kind is Sizes:
        return torch.Size([plain(v) for v in tuple(value)])
    if kind in (tuple, list):
        return value if _ATOMS.issuperset(map(type, value)) else _plain_members(value, kind)
    if kind is slice:
        return slice(plain(value.start), plain(value.stop), plain(value.step))
    if kind is dict:
        items = {plain(k) if type(k) in _KINDS else k: plain(v) for k, v in value.items()}
        return value if all(items.get(k) is v for k, v in value.items()) else items
    if isinstance(value, tuple) and hasattr(value, "_fields") and kind is not torch.Size:
        return _plain_members(value, lambda members: kind(*members))
    return value


def _plain_members(value: Any, build: Callable[[list[Any]], Any]) -> Any:
    members = [plain(v) for v in value]
    return value if all(map(operator.is_, members, value)) else build(members)


def compute(name: str, *args: Any) -> Any:
    """A function of numbers, tracked where a recording listens.

    Operands that are no numbers (a list, a tensor) are left to their own operators.
    """
    if any(type(a) not in _KINDS and type(a) not in (int, float, bool) for a in args):
        return _foreign(name, args)
    value = FUNCTIONS[name](*map(plain, args))
    recorder = current()
    if recorder is None:
        return value
    if name in ("floor", "ceil", "trunc", "round", "pos", "int") and type(args[0]) is TrackedInt:
        return args[0]
    expression = Expression.of(name, *map(expression_of, args))
    if isinstance(value, bool):
        recorder.questions.ask(expression, value)
        return value
    return tracked(value, expression)


def _foreign(name: str, args: tuple[Any, ...]) -> Any:
    if any(isinstance(a, (np.generic, complex)) for a in args):
        values = [a._leak("array") if type(a) in _KINDS else a for a in args]
        return FUNCTIONS[name](*values)
    return NotImplemented


def ask(name: str, left: Any, right: Any) -> Any:
    """A comparison: the recorder writes down what was asked, and what the answer was."""
    if type(right) not in _KINDS and not isinstance(right, (int, float)):
        return _foreign(name, (left, right))
    right = float(right) if isinstance(right, np.floating) else right
    value = FUNCTIONS[name](plain(left), plain(right))
    recorder = current()
    if recorder is not None:
        recorder.questions.ask(Expression.of(name, expression_of(left), expression_of(right)), value)
    return value


def live() -> list[Any]:
    """The tracked numbers of this thread that live; where it records nothing, there must be none."""
    return list(_MADE.numbers.values())
