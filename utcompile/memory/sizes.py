"""Amounts of memory as people write them."""

from __future__ import annotations

import re

from utcompile.errors import UtcError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_FIX = "say a share of the step without a plan, as 0.5, or a size, as '8GB' or '900MiB'"


def read_budget(budget: float | int | str) -> float | int:
    """A budget as a share (a float up to 1) or as bytes (an int); the text '0.5' is the share too.

    Raises:
        UtcError: it is neither.

    Example:
        >>> read_budget("8GB"), read_budget("1.5 GiB"), read_budget(0.5), read_budget("0.5")
        (8000000000, 1610612736, 0.5, 0.5)
    """
    if isinstance(budget, bool) or not isinstance(budget, (int, float, str)):
        raise UtcError(f"a memory budget is {type(budget).__name__}", fix=_FIX, code="memory/budget")
    if isinstance(budget, str):
        found = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]*)?)\s*([KMGT]?I?)B?\s*", budget.upper())
        if found is None or found[2] not in _UNITS:
            raise UtcError(f"a memory budget is {budget!r}", fix=_FIX, code="memory/budget")
        amount = float(found[1])
        return amount if 0 < amount <= 1 and "." in found[1] and not found[2] else int(amount * _UNITS[found[2]])
    if budget <= 0 or (isinstance(budget, float) and not budget <= 1):
        raise UtcError(
            f"a memory budget is {budget}", why="a share is above 0 and up to 1", fix=_FIX, code="memory/budget"
        )
    return budget


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
