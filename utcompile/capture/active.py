"""Which recording runs in this thread. One recording runs at a time in a process; other threads wait for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from utcompile.capture.recorder import Recorder

_LOCK = threading.RLock()  # reentrant: a model's forward may capture another model
_LOCAL = threading.local()


def current() -> Recorder | None:
    """The recorder of the innermost recording of this thread; None outside of a recording and in other threads."""
    stack: list[Recorder] = getattr(_LOCAL, "stack", [])
    return stack[-1] if stack else None


def is_nested() -> bool:
    """Whether this thread's recording runs inside of another one."""
    return len(getattr(_LOCAL, "stack", ())) > 1


def exclusive() -> AbstractContextManager[object]:
    """While it is entered, no other thread records."""
    return _LOCK


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Make a recorder the current one of this thread."""
    with _LOCK:
        stack = _LOCAL.__dict__.setdefault("stack", [])
        stack.append(recorder)
        try:
            yield
        finally:
            stack.pop()
