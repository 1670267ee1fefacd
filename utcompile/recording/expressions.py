"""How a number was computed from the sizes of tensors: an expression that can be evaluated at other sizes.

An expression is a node of a graph without cycles. Equal expressions are one object, so that comparing and hashing cost
nothing, however long the chain of computations is. Its leaves are constants and *readings*: a dimension or a stride of
the tensor that a node of the recording yields, named by the node's serial number. The serial number of a node is the
same in all recordings that are one graph.
"""

from __future__ import annotations

import math
import operator
import re
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch

Number = int | float | bool
_Key = tuple[str, type, str] | tuple[str, int, int] | tuple[str, tuple["Expression", ...]]


def bit_length(value: int) -> int:
    """The number of bits of a whole number."""
    return int(value).bit_length()


def is_integer(value: float) -> bool:
    """Whether a float is a whole number."""
    return float(value).is_integer()


def parts(size: int, step: int) -> int | torch.SymInt:
    """Into how many parts of at most `step` a size is split; an empty tensor is one part."""
    return torch.sym_max(1, -(-size // step))


def steps(start: int, stop: int, step: int) -> int | torch.SymInt:
    """The length of a range."""
    return torch.sym_max(0, -((start - stop) // step))


# functions of numbers in Python; where torch has a twin, it is the one that its compiler and exporter understand
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in "add sub mul truediv floordiv mod pow lshift rshift".split()},
    **{name: getattr(operator, name) for name in "and_ or_ xor neg pos abs invert eq ne lt le gt ge".split()},
    **{name: getattr(math, name) for name in "floor ceil trunc log log2 log10 log1p exp gcd lcm isqrt isclose".split()},
    **{name: getattr(math, name) for name in "sin cos tan tanh atan comb copysign fmod hypot isfinite isnan".split()},
    "sqrt": math.sqrt, "math_pow": math.pow, "round": round, "round_to": round, "int": torch.sym_int,
    "float": torch.sym_float, "min": torch.sym_min, "max": torch.sym_max, "bit_length": bit_length,
    "is_integer": is_integer, "parts": parts, "steps": steps,
}  # fmt: skip
SIGNS = {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**", "lshift": "<<",
    "rshift": ">>", "and_": "&", "or_": "|", "xor": "^", "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">",
    "ge": ">=",
}  # fmt: skip
PREFIXES = {"neg": "-", "pos": "+", "invert": "~"}
# the size and the stride of a dimension of a node's tensor
READINGS = ("size", "stride")
_WORD = re.compile(r"[\w.\[\]]+")  # a number, a symbol, or `layers.0.bmm.shape[1]`


class Expression:
    """A constant (`op` is "const"), a reading (`op` is in `READINGS`), or a function.

    Attributes:
        op: "const", a kind of reading, or the name of a function in `FUNCTIONS`.
        args: the operands of a function; empty for the others.
        number: the value of a constant.
        serial, dim: the serial number of the node that a reading was read off, and the dimension.

    Example:
        >>> batch = Expression.reading("size", 1, 0)
        >>> padded = Expression.of("mod", Expression.of("neg", batch), Expression.const(8))
        >>> padded.value({batch: 13}), padded.text({batch: "B"})
        (3, '-B % 8')
        >>> padded is Expression.of("mod", Expression.of("neg", batch), Expression.const(8))
        True
    """

    __slots__ = ("__weakref__", "args", "dim", "number", "op", "serial")
    _known: ClassVar[weakref.WeakValueDictionary[_Key, Expression]] = weakref.WeakValueDictionary()

    op: str
    args: tuple[Expression, ...]
    number: Number
    serial: int
    dim: int

    @classmethod
    def const(cls, value: Number) -> Expression:
        """A number that no size is read for."""
        key = ("const", type(value), repr(value))
        found = cls._known.get(key)
        if found is None:
            found = cls._new(key, "const")
            found.number = value
        return found

    @classmethod
    def reading(cls, kind: str, serial: int, dim: int) -> Expression:
        """A size or a stride that Python read off a tensor."""
        key = (kind, serial, dim)
        found = cls._known.get(key)
        if found is None:
            found = cls._new(key, kind)
            found.serial, found.dim = serial, dim
        return found

    @classmethod
    def of(cls, op: str, *args: Expression) -> Expression:
        """A function of other expressions."""
        key = (op, args)
        found = cls._known.get(key)
        return cls._new(key, op, args) if found is None else found

    @classmethod
    def _new(cls, key: _Key, op: str, args: tuple[Expression, ...] = ()) -> Expression:
        made = object.__new__(cls)
        made.op, made.args = op, args
        cls._known[key] = made
        return made

    @property
    def is_reading(self) -> bool:
        """Whether it is a leaf that differs between calls."""
        return self.op in READINGS

    @property
    def is_leaf(self) -> bool:
        """Whether it is computed from nothing else."""
        return self.op == "const" or self.is_reading

    def walk(self) -> Iterator[Expression]:
        """All expressions in it, each once, operands before what is computed from them."""
        seen: set[Expression] = set()
        stack: list[tuple[Expression, bool]] = [(self, False)]
        while stack:
            one, ready = stack.pop()
            if ready:
                yield one
            elif one not in seen:
                seen.add(one)
                stack.append((one, True))
                stack += [(a, False) for a in reversed(one.args)]

    def readings(self) -> list[Expression]:
        """Its leaves that are readings."""
        return [e for e in self.walk() if e.is_reading]

    def replaced(self, readings: Mapping[Expression, Expression]) -> Expression:
        """The same function of other readings."""
        made: dict[Expression, Expression] = {}
        for e in self.walk():
            made[e] = readings.get(e, e) if e.is_leaf else Expression.of(e.op, *(made[a] for a in e.args))
        return made[self]

    def value(self, readings: Mapping[Expression, int]) -> Number:
        """Its value where the readings are known.

        Raises:
            ArithmeticError, ValueError: it has none there, as a division by zero.
        """
        values: dict[Expression, Number] = {}
        for e in self.walk():
            if e.op == "const":
                values[e] = e.number
            elif e.is_reading:
                values[e] = readings[e]
            else:
                values[e] = FUNCTIONS[e.op](*(values[a] for a in e.args))
        return values[self]

    def text(self, names: Mapping[Expression, str]) -> str:
        """Python text that computes it, in which readings have names; functions are called by their names here."""
        texts: dict[Expression, str] = {}
        for e in self.walk():
            if e.op == "const":
                texts[e] = repr(e.number) if _is_finite(e.number) else f"float({str(e.number)!r})"
            elif e.is_reading:
                texts[e] = names[e]
            elif e.op in SIGNS:
                left, right = (_in_brackets(a, texts[a], e) for a in e.args)
                texts[e] = f"{left} {SIGNS[e.op]} {right}"
            elif e.op in PREFIXES:
                texts[e] = f"{PREFIXES[e.op]}{_in_brackets(e.args[0], texts[e.args[0]], e)}"
            else:
                texts[e] = f"{e.op}({', '.join(texts[a] for a in e.args)})"
        return texts[self]


def _is_finite(value: Number) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _in_brackets(inner: Expression, text: str, outer: Expression) -> str:
    tight = inner.is_leaf or (inner.op not in SIGNS and inner.op not in PREFIXES)
    negative = inner.op == "const" and text.startswith("-")
    loose = outer.op in ("eq", "ne", "lt", "le", "gt", "ge") and inner.op in ("add", "sub", "mul", "floordiv", "mod")
    if (tight and not negative and _WORD.fullmatch(text)) or (tight and "(" in text) or loose:
        return text
    if inner.op == "neg" and outer.op in ("mod", "floordiv"):
        return text
    return f"({text})"
