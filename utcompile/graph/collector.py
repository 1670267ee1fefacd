"""Python's cyclic garbage collector, held still while a large graph is made."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Collect nothing inside: a graph's nodes all live on, and walking them again and again costs what the work does.

    Left running, it made twenty rules on 10,000 nodes take about twice the CPU time, and a recording of 5,000 too.

    Example:
        >>> with collector_paused():
        ...     gc.isenabled()
        False
        >>> gc.isenabled()
        True
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
