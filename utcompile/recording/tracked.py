"""Numbers that remember how they were computed from sizes, for as long as a recording runs.

Python decides much by sizes: `//`, `min`, `range`, `if`. A recording hands out sizes as subclasses of `torch.SymInt`
whose `__class__` is `int`. Torch's argument parsers accept them, and Python's own C code (`range`, indexing, hashing)
has to call them for their values, so no use of them is missed; the value of a subclass of `int` would be read silently.
Torch's symbolic shapes are not used: tensors and shapes stay static. To a type checker a tracked number is a number.

A number reports two things to the recorder of its thread: *questions* (comparisons, with their answers), and *leaks*
(its value went to code where its further use is not seen). No number may outlive its recording: `survivors.release`.
"""

from __future__ import annotations

import math
import operator
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self, SupportsIndex, TypeGuard, TypeVar, cast, overload

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch._subclasses.fake_tensor import FakeTensor

from utcompile.recording.active import current
from utcompile.recording.expressions import FUNCTIONS, Expression, Number

V = TypeVar("V")
N = TypeVar("N", int, float)

_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_BINARY = "add sub mul truediv floordiv mod pow lshift rshift and_ or_ xor".split()


class _Made(threading.local):
    """The tracked numbers of a thread, by identity."""

    def __init__(self) -> None:
        self.numbers: weakref.WeakValueDictionary[int, _Tracked] = weakref.WeakValueDictionary()


_MADE = _Made()


class _Value:
    """The interface of a `SymInt` to torch's C++ code."""

    constant = None

    def __init__(self, value: Number) -> None:
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

    def maybe_as_int(self) -> Number:
        return self.value

    def guard_int(self, file: str, line: int) -> Number:
        return self.value

    guard_float = guard_int

    def int_(self) -> Number:
        return self.value

    float_ = int_

    def _graph_repr(self) -> str:
        return str(self.value)

    str = _graph_repr


class _Tracked:
    """The common part of whole numbers and floats."""

    value: Number
    expression: Expression

    def __init__(self, value: Number, expression: Expression) -> None:
        super().__init__(_Value(value))  # type: ignore[call-arg]
        self.value, self.expression = value, expression
        _MADE.numbers[id(self)] = self

    def leak(self, how: str) -> Number:
        """The value, for code that does not report what it does with it."""
        recorder = current()
        if recorder is not None:
            recorder.questions.leak(how, self.expression, self.value)
        return self.value

    def __index__(self) -> int:
        return int(self.leak("index"))

    def __int__(self) -> int:
        return int(self.leak("int"))

    def __float__(self) -> float:
        return float(self.leak("float"))

    def __complex__(self) -> complex:
        return complex(self.leak("complex"))

    def __hash__(self) -> int:
        return hash(self.leak("hash"))

    def __bool__(self) -> bool:
        return bool(ask("ne", self, 0))

    def __repr__(self) -> str:
        return repr(self.leak("text"))

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(self.leak("text"), spec)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> object:
        return np.asarray(self.leak("array"), dtype)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *args: object, **kwargs: object) -> object:
        for a in args:
            if isinstance(a, _Tracked):
                a.leak("array")
        return getattr(ufunc, method)(*map(plain, args), **kwargs)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self.value), (self.leak("pickle"),)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __divmod__(self, other: object) -> tuple[object, object]:
        return compute("floordiv", self, other), compute("mod", self, other)

    def __rdivmod__(self, other: object) -> tuple[object, object]:
        return compute("floordiv", other, self), compute("mod", other, self)


def _power(number: _Tracked, other: object, modulus: object = None) -> object:
    power = compute("pow", number, other)
    return power if modulus is None else compute("mod", power, modulus)


def _rounded(number: _Tracked, digits: object = None) -> object:
    return compute("round", number) if digits is None else compute("round_to", number, digits)


def _define_operators() -> None:
    def unary(name: str) -> Callable[[object], object]:
        return lambda self: compute(name, self)

    def binary(name: str) -> tuple[Callable[[object, object], object], Callable[[object, object], object]]:
        return (lambda self, other: compute(name, self, other)), (lambda self, other: compute(name, other, self))

    def comparison(name: str) -> Callable[[_Tracked, object], object]:
        return lambda self, other: ask(name, self, other)

    for name in ("neg", "pos", "abs", "invert", "floor", "ceil", "trunc"):
        setattr(_Tracked, f"__{name}__", unary(name))
    for name in _BINARY:
        forward, reflected = binary(name)
        setattr(_Tracked, f"__{name.strip('_')}__", _power if name == "pow" else forward)
        setattr(_Tracked, f"__r{name.strip('_')}__", reflected)
    for name in _COMPARISONS:
        setattr(_Tracked, f"__{name}__", comparison(name))
    setattr(_Tracked, "__round__", _rounded)  # noqa: B010 - SymInt has another signature


_define_operators()


class TrackedInt(_Tracked, torch.SymInt):
    """A whole number that remembers; `isinstance(x, int)` is true."""

    __class__ = property(lambda self: int)
    __hash__ = _Tracked.__hash__
    real = numerator = property(lambda self: self)
    imag = property(lambda self: 0)
    denominator = property(lambda self: 1)

    def bit_length(self) -> int:
        return compute("bit_length", self)

    def is_integer(self) -> bool:
        return True

    def conjugate(self) -> Self:
        return self

    def as_integer_ratio(self) -> tuple[Self, int]:
        return self, 1


class TrackedFloat(_Tracked, torch.SymFloat):
    """A float that remembers; `isinstance(x, float)` is true."""

    __class__ = property(lambda self: float)
    __hash__ = _Tracked.__hash__

    def is_integer(self) -> bool:
        return bool(compute("is_integer", self))

    def conjugate(self) -> Self:
        return self


_KINDS = (TrackedInt, TrackedFloat)
_ATOMS = frozenset(
    [torch.Tensor, torch.nn.Parameter, FakeTensor, bool, int, float, str, type(None), torch.dtype, torch.device]
)


class Sizes(tuple[int, ...]):
    """The shape of a tensor, of tracked sizes; its class reads `torch.Size`, whose own `numel` would not be seen."""

    __slots__ = ()
    __class__ = property(lambda self: torch.Size)

    def numel(self) -> int:
        return math.prod(self)

    @overload
    def __getitem__(self, index: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sizes: ...
    def __getitem__(self, index: SupportsIndex | slice) -> int | Sizes:
        found = tuple.__getitem__(self, index)
        return Sizes(found) if isinstance(found, tuple) else found

    def __add__(self, other: Iterable[Any]) -> Any:
        return Sizes(tuple.__add__(self, tuple(other)))

    def __radd__(self, other: Iterable[int]) -> Sizes:
        return Sizes((*other, *self))

    def __mul__(self, times: SupportsIndex) -> Sizes:
        return Sizes(tuple.__mul__(self, times))

    __rmul__ = __mul__

    def __reduce__(self) -> tuple[object, ...]:
        return torch.Size, (plain(tuple(self)),)

    def __deepcopy__(self, memo: object) -> Self:
        return self


def is_tracked(value: object) -> TypeGuard[TrackedInt | TrackedFloat]:
    """Whether a number remembers."""
    return type(value) in _KINDS


def tracked(value: N, expression: Expression) -> N:
    """A number that remembers; booleans and what is no number stay as they are."""
    if type(value) is int:
        return cast(N, TrackedInt(value, expression))
    return cast(N, TrackedFloat(value, expression)) if type(value) is float else value


def expression_of(value: Number | _Tracked) -> Expression:
    """How a number was computed; a number that is not tracked is a constant."""
    return value.expression if isinstance(value, _Tracked) else Expression.const(value)


@overload
def plain(value: _Tracked) -> Number: ...
@overload
def plain(value: V) -> V: ...
def plain(value: object) -> object:
    """A value without tracked numbers in it; the same object where there are none."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if isinstance(value, _Tracked):
        return value.value
    if type(value) is Sizes:
        return torch.Size([plain(v) for v in tuple(value)])
    if type(value) is tuple or type(value) is list:
        return value if _ATOMS.issuperset(map(type, value)) else _plain_members(value, type(value))
    if type(value) is slice:
        return slice(plain(value.start), plain(value.stop), plain(value.step))
    if type(value) is dict:
        items = {plain(k) if type(k) in _KINDS else k: plain(v) for k, v in value.items()}
        return value if all(items.get(k) is v for k, v in value.items()) else items
    if isinstance(value, tuple) and hasattr(value, "_fields") and kind is not torch.Size:
        return _plain_members(value, lambda members: kind(*members))
    return value


def _plain_members(value: Sequence[object], build: Callable[[list[object]], object]) -> object:
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


def _foreign(name: str, args: tuple[object, ...]) -> object:
    if any(isinstance(a, (np.generic, complex)) for a in args):
        values = [a.leak("array") if isinstance(a, _Tracked) else a for a in args]
        return FUNCTIONS[name](*values)
    return NotImplemented


def ask(name: str, left: _Tracked, right: object) -> object:
    """A comparison: the recorder writes down the question and the answer."""
    if not isinstance(right, (_Tracked, int, float)):
        return _foreign(name, (left, right))
    right = float(right) if isinstance(right, np.floating) else right
    value = FUNCTIONS[name](plain(left), plain(right))
    recorder = current()
    if recorder is not None:
        recorder.questions.ask(Expression.of(name, expression_of(left), expression_of(right)), value)
    return value


def live() -> list[_Tracked]:
    """The tracked numbers of this thread that live; outside of recordings there must be none."""
    return list(_MADE.numbers.values())
