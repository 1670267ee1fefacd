"""How many examples a property test draws."""

from __future__ import annotations

from hypothesis import settings


def examples(few: int, *, full: int) -> int:
    """A part of them in `make test`, which draws the same in every run, and all in `make test-full`."""
    return few if settings.default.derandomize else full
