"""How much work a block does, as a number that no machine changes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Work:
    """Calls of functions, Python's and C's, that a block made."""

    calls = 0

    def note(self, frame: FrameType, event: str, argument: object) -> None:
        if event in ("call", "c_call"):
            self.calls += 1


@contextmanager
def counted() -> Iterator[Work]:
    """Count the calls that a block makes in this thread."""
    work, before = Work(), sys.getprofile()
    sys.setprofile(work.note)
    try:
        yield work
    finally:
        sys.setprofile(before)


@contextmanager
def bounded_by(size: int) -> Iterator[None]:
    """Fail where a rule file of this many bytes costs more than loading should.

    Measured: at most 75 calls for each byte of a large file (70,000 numbers, each a value with its place), and 32,000 for
    a small one, where a name is compared with all that it may have meant. Work that is quadratic in a large file, or
    exponential in a small one, is thousands of times as much.
    """
    with counted() as work:
        yield
    assert work.calls <= 100_000 + 100 * size, f"{work.calls:,} calls for {size:,} bytes"
