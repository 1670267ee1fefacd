"""Python's cyclic garbage collector is paused while a large graph is made."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.Lock()
_inside = 0  # threads and levels that keep it paused
_was_enabled = False


@contextmanager
def collector_paused() -> Iterator[None]:
    """Collect no garbage inside: all nodes of a graph stay alive, and walks over them cost as much as the work itself.

    Left running, it made twenty rules on 10,000 nodes take about twice the CPU time, and a recording of 5,000 too.

    Example:
        >>> with collector_paused():
        ...     gc.isenabled()
        False
        >>> gc.isenabled()
        True
    """
    global _inside, _was_enabled
    with _LOCK:
        if not _inside:
            _was_enabled = gc.isenabled()
        _inside += 1
        gc.disable()
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if not _inside and _was_enabled:
                gc.enable()
