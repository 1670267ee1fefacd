"""The state that the recordings of one capture leave behind in Python, and whether a later call reads it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from utcompile.errors import UtcError
from utcompile.recording.places import Change
from utcompile.recording.state import Snapshot

SETTLES = "the first call prepares state that later calls read, and these run alike"


@dataclass
class Watch:
    """Collects the findings of recordings; each recording puts the surroundings back.

    Attributes:
        model: the user's model.
        around: globals, closures, class attributes and random numbers, as they were before the capture.
        assigned: names of state that `forward` assigns and no later call reads, with the reason.
        lasting: names of state that a later call reads, with the reason.
        drawn: generators of random numbers that `forward` used.
    """

    model: nn.Module
    around: Snapshot
    assigned: dict[str, str] = field(default_factory=dict)
    lasting: dict[str, str] = field(default_factory=dict)
    drawn: dict[str, None] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> Watch:
        """Take a snapshot of a model's surroundings before anything runs."""
        return cls(model, Snapshot.of_surroundings(model))

    def new(self, changes: Iterable[Change]) -> list[Change]:
        """Those changes of state that no recording has shown before; random numbers are noted at once."""
        found = list(changes)
        self.drawn |= dict.fromkeys(c.name for c in found if c.random)
        return [c for c in found if not c.random and c.name not in self.assigned and c.name not in self.lasting]

    def check(self) -> None:
        """Refuse a model whose later calls read the state that an earlier one has left.

        Raises:
            UtcError: it names the state.
        """
        if self.lasting:
            raise lasting_error(self.model, list(self.lasting), next(iter(self.lasting.values())))

    @property
    def state(self) -> tuple[str, ...]:
        """The state that `forward` assigns and nothing reads again, for the report."""
        return tuple(f"{name}: {reason}{_at(self.model, name)}" for name, reason in self.assigned.items())


def lasting_error(model: nn.Module, names: list[str], why: str) -> UtcError:
    """The error of a model whose next call would compute something else, because of the state that this one left."""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    write = "register it as a buffer and write into it with torch operations (self.mean.mul_(0.9).add_(0.1 * new))"
    return UtcError(
        f"the model's forward keeps state in Python from one call to the next: {shown}",
        where=source_of(model, names[0]),
        why=f"{why}; a graph has no Python state",
        fix="run the model once on the example first, in eval mode: model(*example)"
        if why == SETTLES
        else f"{write}, or take it as an input and return it",
    )


def _at(model: nn.Module, name: str) -> str:
    line = source_of(model, name)
    return f" ({line})" if line else ""


def source_of(model: nn.Module, name: str) -> str | None:
    """The first line of the model's code, outside of `__init__`, that writes an attribute; None where none is found."""
    path, _, attribute = re.sub(r"\[.*", "", name).rpartition(".")
    try:
        owner: nn.Module | None = model.get_submodule(path)
    except AttributeError:
        owner = None
    name = re.escape(attribute.split(" ")[0])
    write = re.compile(
        rf"\b{name}\b(\[[^\]]*\])*\s*([-+*/@|&^%]|//|\*\*|<<|>>)?=(?!=)|\b{name}\.\w+\(|\b{name}\b\s*[,:]"
    )
    owners = [owner] if owner is not None else list(model.modules())
    for klass in dict.fromkeys(c for m in owners for c in type(m).__mro__):
        if klass.__module__.partition(".")[0] in ("torch", "builtins"):
            continue
        for function in vars(klass).values():
            if inspect.isfunction(function) and function.__name__ != "__init__":
                found = _line(function, write)
                if found:
                    return found
    return None


def _line(function: object, write: re.Pattern[str]) -> str | None:
    try:
        lines, first = inspect.getsourcelines(function)  # type: ignore[arg-type]
        file = inspect.getsourcefile(function) or "?"  # type: ignore[arg-type]
    except (OSError, TypeError):
        return None
    for i, line in enumerate(lines):
        if write.search(line) and not line.lstrip().startswith(("def ", "class ", "#", "@")):
            return f"{file.rpartition('/')[2]}:{first + i} in {function.__name__}"  # type: ignore[attr-defined]
    return None
