"""The facts about a value of the graph: its sizes at every recorded sample, dtype, device and storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from math import prod

import torch


@dataclass(frozen=True)
class Symbol:
    """A size that varies between calls.

    Attributes:
        name: `B` for the batch, `L` for a length, or as the caller named it.
        example: its size in the first recording.
        step: other sizes that are recorded differ from it by multiples of this.
    """

    name: str
    example: int
    step: int = 1


BATCH = Symbol("B", 2)
Sample = Mapping[Symbol, int]
Monomial = tuple[Symbol, ...]
Term = tuple[Monomial, Fraction]


@dataclass(frozen=True)
class Size:
    """A size that is a polynomial in the symbols, each at most once in a term: `196*B`, `B*L`, `1/32*H+1`.

    >>> length = Symbol("L", 7)
    >>> print(Size(((((BATCH,), Fraction(1)),))), Size((((BATCH, length), Fraction(3)), ((), Fraction(1)))))
    B 3*B*L+1
    """

    terms: tuple[Term, ...]

    def __str__(self) -> str:
        return "+".join(_term(symbols, factor) for symbols, factor in self.terms).replace("+-", "-")

    __repr__ = __str__

    def at(self, batch: int) -> int:
        """The size at one batch size; other symbols take their example's size."""
        return self.of({BATCH: batch})

    def of(self, sample: Sample) -> int:
        """The size at a sample; symbols it leaves out take their example's size."""
        return int(sum(factor * prod(sample.get(s, s.example) for s in symbols) for symbols, factor in self.terms))

    @property
    def is_whole(self) -> bool:
        """Whether every factor is an integer, so that it can be computed with integers at any size."""
        return all(factor.denominator == 1 for _, factor in self.terms)


@dataclass(frozen=True)
class Computed:
    """A number that is computed from sizes otherwise than by a polynomial: `B // 8`, `sqrt(L)`.

    >>> batch = Size((((BATCH,), Fraction(1)),))
    >>> Computed(divmod, (batch, 8)).at(17)
    (2, 1)
    """

    function: Callable[..., object]
    operands: tuple[object, ...]

    def at(self, batch: int) -> object:
        """The number at one batch size; other symbols take their example's size."""
        return self.of({BATCH: batch})

    def of(self, sample: Sample) -> object:
        """The number at a sample; symbols it leaves out take their example's size."""
        return self.function(*(o.of(sample) if isinstance(o, (Size, Computed)) else o for o in self.operands))


def _term(symbols: Monomial, factor: Fraction) -> str:
    names = "*".join(s.name for s in symbols)
    if not names:
        return str(factor)
    return names if factor == 1 else f"{factor}*{names}"


class Fitter:
    """Finds the size that fits the sizes of all samples.

    Args:
        symbols: the sizes that vary.
        samples: at least the 2ⁿ corners, in any order, and one more that separates `B²` from `5·B - 6`.

    >>> fit = Fitter([BATCH], [{BATCH: b} for b in (2, 3, 5)])
    >>> fit([4, 4, 4]), fit([8, 12, 20]), fit([4, 9, 25])
    (4, 4*B, None)
    """

    def __init__(self, symbols: Sequence[Symbol], samples: Sequence[Sample]) -> None:
        self.monomials = [c for n in range(len(symbols), -1, -1) for c in combinations(symbols, n)]
        self.rows = [[Fraction(prod(sample[s] for s in m)) for m in self.monomials] for sample in samples]
        self._known: dict[tuple[int, ...], int | Size | None] = {}

    def __call__(self, sizes: Sequence[int]) -> int | Size | None:
        """The one size through all the points, an int where they agree, None where there is none."""
        key = tuple(sizes)
        if len(set(key)) == 1:
            return key[0]
        if key not in self._known:
            self._known[key] = self._fit(key)
        return self._known[key]

    def _fit(self, sizes: tuple[int, ...]) -> Size | None:
        factors = _solve([[*row, Fraction(size)] for row, size in zip(self.rows, sizes, strict=True)])
        if factors is None:
            return None
        return Size(tuple((m, f) for m, f in zip(self.monomials, factors, strict=True) if f))


def _solve(rows: list[list[Fraction]]) -> list[Fraction] | None:
    """The solution of a linear system by elimination, exactly; None where there is none or more than one."""
    rows = [list(r) for r in rows]
    unknowns = len(rows[0]) - 1
    for column in range(unknowns):
        pivot = next((i for i in range(column, len(rows)) if rows[i][column]), None)
        if pivot is None:
            return None
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [v / rows[column][column] for v in rows[column]]
        for i, row in enumerate(rows):
            if i != column and row[column]:
                rows[i] = [a - row[column] * b for a, b in zip(row, rows[column], strict=True)]
    return None if any(row[-1] for row in rows[unknowns:]) else [row[-1] for row in rows[:unknowns]]


@dataclass(frozen=True)
class Value:
    """A tensor of the graph.

    Attributes:
        shape: one int or `Size` a dimension.
        dtype: its dtype at capture.
        device: its device at capture.
        storage: values of one number share memory (views, in-place results).
    """

    shape: tuple[int | Size, ...]
    dtype: torch.dtype
    device: torch.device
    storage: int

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def sizes(self, batch: int) -> tuple[int, ...]:
        """The shape at one batch size; other symbols take their example's size."""
        return tuple(d.at(batch) if isinstance(d, Size) else d for d in self.shape)

    def __str__(self) -> str:
        return "[" + ", ".join(map(str, self.shape)) + "]"
