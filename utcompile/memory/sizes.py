"""Amounts of memory as people write them."""

from __future__ import annotations

import re
from numbers import Integral, Real

from utcompile.errors import UtcError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_FIX = "say a share of the step without a plan, as 0.5, or a size, as '8GB' or '900MiB'"


def read_budget(budget: float | int | str) -> float | int:
    """A budget as a share (a float up to 1) or as bytes (an int); the text '0.5' is the share too.

    Numbers of numpy are read as those of Python.

    Raises:
        UtcError: it is neither.

    Example:
        >>> read_budget("8GB"), read_budget("1.5 GiB"), read_budget(0.5), read_budget("0.5"), read_budget("1.0B")
        (8000000000, 1610612736, 0.5, 0.5, 1)
    """
    given, what = _amount(budget), f"a memory budget is {_text(budget)}"
    if given is None:
        raise UtcError(what, fix=_FIX, code="memory/budget")
    if given <= 0 or (isinstance(given, float) and not given <= 1):
        why = "a share is a float above 0 and up to 1; bytes are a whole number above 0"
        raise UtcError(what, why=why, fix=_FIX, code="memory/budget")
    return given


def read_bound(bound: int | str) -> int:
    """The most bytes that something may take: a budget that is no share.

    Raises:
        UtcError: it is no such size.

    Example:
        >>> read_bound("4GB")
        4000000000
    """
    given = _amount(bound)
    if given is None or isinstance(given, float) or given <= 0:
        what, fix = f"a bound of memory is {_text(bound)}", "say a size, as '4GB' or '900MiB', or none"
        raise UtcError(what, fix=fix, code="memory/budget")
    return given


def _text(budget: object) -> str:
    """A budget in a message: numbers and short texts as they are written."""
    if isinstance(budget, str) or budget is None:
        return f"{budget!r:.80}"
    is_number = isinstance(budget, Real) and not isinstance(budget, bool)
    return str(budget) if is_number else f"of type {type(budget).__name__}"


def _amount(budget: object) -> float | int | None:
    """The number that a budget is, whatever its size; None where it is none."""
    if isinstance(budget, str):
        found = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]*)?)\s*([KMGT]?I?)(B?)\s*", budget.upper(), re.ASCII)
        if found is None or found[2] not in _UNITS:
            return None
        amount = float(found[1])
        is_share = 0 < amount <= 1 and "." in found[1] and not found[2] and not found[3]
        return amount if is_share else int(amount * _UNITS[found[2]])
    if isinstance(budget, bool) or not isinstance(budget, Real):
        return None
    return int(budget) if isinstance(budget, Integral) else float(budget)


def shown_up(count: int) -> str:
    """Bytes for people, rounded up, so that what is read again is enough: `74.3 MB`.

    Example:
        >>> shown_up(74_210_000), read_budget(shown_up(999_951)) >= 999_951
        ('74.3 MB', True)
    """
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{-(-10 * count // size) / 10:.1f} {unit}"
    return f"{count} B"


def shown(count: float) -> str:
    """Bytes for people: `74.2 MB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"
