"""Which recording runs in this thread. One recording runs at a time in a process; other threads wait for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NoReturn, Protocol

from torch import fx

_LOCK = threading.RLock()  # reentrant: a model's forward may capture another model
_LOCAL = threading.local()


class Asked(Protocol):
    """Where a recording writes down what Python asks of sizes and flags (`Questions`)."""

    def ask(self, question: Any, answer: bool) -> None: ...
    def leak(self, how: str, expression: Any, value: Any) -> None: ...
    def flag(self, serial: int, name: str, value: Any) -> None: ...


class Recording(Protocol):
    """A recorder, as the replaced functions of torch and the tracked numbers see it (`Recorder`)."""

    @property
    def questions(self) -> Asked: ...
    @property
    def is_silent(self) -> bool: ...
    @property
    def is_real(self) -> bool: ...
    def module_call(self, original: Any, module: Any, args: Any, kwargs: Any) -> Any: ...
    def function(self, target: Any, args: Any, kwargs: Any) -> Any: ...
    def note(self, what: str) -> None: ...
    def enter_autocast(self, *settings: Any) -> fx.Node: ...
    def exit_autocast(self, entered: fx.Node) -> None: ...
    def refuse_operator(self, *_: Any, compiles: bool = False, **__: Any) -> NoReturn: ...


def current() -> Recording | None:
    """The recorder of the innermost recording of this thread; None outside of a recording and in other threads."""
    stack: list[Recording] = getattr(_LOCAL, "stack", [])
    return stack[-1] if stack else None


def is_nested() -> bool:
    """Whether this thread's recording runs inside of another one."""
    return len(getattr(_LOCAL, "stack", ())) > 1


def exclusive() -> AbstractContextManager[object]:
    """While it is entered, no other thread records."""
    return _LOCK


@contextmanager
def recording(recorder: Recording) -> Iterator[None]:
    """Make a recorder the current one of this thread."""
    with _LOCK:
        stack = _LOCAL.__dict__.setdefault("stack", [])
        stack.append(recorder)
        try:
            yield
        finally:
            stack.pop()
