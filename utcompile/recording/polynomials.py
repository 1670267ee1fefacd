"""Polynomials with rational factors, each a dictionary from products of variables to their factors."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import TypeVar

V = TypeVar("V")
Polynomial = dict[tuple[V, ...], Fraction]  # without zero terms; the constant has the key ()
Order = Callable[[V], int]


def constant(value: int | float | Fraction) -> Polynomial[V]:
    """A polynomial without variables."""
    return {(): Fraction(value)} if value else {}


def total(left: Polynomial[V], right: Polynomial[V], sign: int = 1) -> Polynomial[V]:
    """The sum of two polynomials; their difference where the sign is -1.

    >>> total({("x",): Fraction(2), (): Fraction(1)}, {("x",): Fraction(2)}, -1)
    {(): Fraction(1, 1)}
    """
    found = dict(left)
    for monomial, factor in right.items():
        found[monomial] = found.get(monomial, Fraction(0)) + sign * factor
    return _without_zeros(found)


def product(left: Polynomial[V], right: Polynomial[V], order: Order[V]) -> Polynomial[V]:
    """The product of two polynomials, the variables of each term sorted by an order."""
    found: Polynomial[V] = {}
    for a, x in left.items():
        for b, y in right.items():
            monomial = tuple(sorted((*a, *b), key=order))
            found[monomial] = found.get(monomial, Fraction(0)) + x * y
    return _without_zeros(found)


def combined(op: str, parts: list[Polynomial[V]], order: Order[V]) -> Polynomial[V] | None:
    """A function of one or two polynomials (by its name in `expressions.FUNCTIONS`); None where it is no polynomial."""
    if len(parts) == 1:
        factor = {"neg": -1, "pos": 1}.get(op)
        return None if factor is None else {m: f * factor for m, f in parts[0].items()}
    if len(parts) != 2:
        return None
    left, right = parts
    if op in ("add", "sub"):
        return total(left, right, 1 if op == "add" else -1)
    if op == "mul":
        return product(left, right, order)
    if set(right) != {()}:
        return None
    number = right[()]
    if op == "pow" and 0 < number <= 4:
        power = left
        for _ in range(int(number) - 1):
            power = product(power, left, order)
        return power
    if op in ("floordiv", "mod") and all((f / number).denominator == 1 for f in left.values()):
        return {m: f / number for m, f in left.items()} if op == "floordiv" else {}
    return None


def is_never_negative(polynomial: Polynomial[V]) -> bool:
    """Whether a polynomial of sizes is 0 or more for a reason that is easy to see: no term is negative."""
    return all(f >= 0 for f in polynomial.values())


def _without_zeros(polynomial: Polynomial[V]) -> Polynomial[V]:
    return {m: f for m, f in polynomial.items() if f}
