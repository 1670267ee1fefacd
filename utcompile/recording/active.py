"""Which recording runs in this thread. One recording runs at a time in a process; other threads wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NoReturn, Protocol

from torch import fx, nn
from torch.fx.node import Argument

from utcompile.recording.expressions import Expression, Number

Function = Callable[..., object]
Args = tuple[object, ...]
Kwargs = Mapping[str, object]
# an attribute of torch: its owner, its name, and what makes its replacement of the original
Replacement = tuple[object, str, Callable[[Any], object]]
_LOCK = threading.RLock()  # reentrant: a model's forward may capture another model
_LOCAL = threading.local()


class Asked(Protocol):
    """The part of a recorder that writes down Python's questions about sizes and flags (`Questions`)."""

    def ask(self, question: Expression, answer: bool) -> None: ...
    def leak(self, how: str, expression: Expression, value: Number) -> None: ...
    def flag(self, serial: int, name: str, value: bool) -> None: ...


class Autocast(Protocol):
    """The part of a recorder that writes down regions of autocast (`Regions`)."""

    def enter_autocast(self, *settings: Argument) -> fx.Node: ...
    def exit_autocast(self, entered: fx.Node) -> None: ...


class Recording(Protocol):
    """A recorder, as the replaced functions of torch and the tracked numbers see it (`Recorder`)."""

    @property
    def questions(self) -> Asked: ...
    @property
    def regions(self) -> Autocast: ...
    @property
    def is_silent(self) -> bool: ...
    @property
    def is_real(self) -> bool: ...
    def module_call(self, original: Function, module: nn.Module, args: Args, kwargs: Kwargs) -> object: ...
    def function(self, target: Function, args: Args, kwargs: Kwargs) -> object: ...
    def note(self, what: str) -> None: ...
    def refuse_operator(self, *_: object, compiles: bool = False, **__: object) -> NoReturn: ...


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
