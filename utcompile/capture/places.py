"""Where Python keeps state: namespaces, containers, cells of closures, generators of random numbers.

A place remembers what it held. It names what has changed since, and puts that back.
"""

from __future__ import annotations

import functools
import random
import types
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

_PLAIN = frozenset([bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device])


_MAPPING = MutableMapping.__setitem__, MutableMapping.__delitem__


class _Absent:
    """What a place holds under a name that it does not have."""

    def __repr__(self) -> str:
        return "nothing"


ABSENT = _Absent()


@dataclass(frozen=True)
class Change:
    """Something that a run of a model left otherwise than it found it.

    Attributes:
        name: as a person reads it: `blocks.0.attn.cache['cpu']`.
        before: what was there; `ABSENT` where nothing was.
        after: what is there now.
        place: where.
        key: under which key, attribute or index of the place.
        random: a generator of random numbers has moved on.
    """

    name: str
    before: Any = field(compare=False, default=ABSENT)
    after: Any = field(compare=False, default=ABSENT)
    place: Any = field(compare=False, default=None, repr=False)
    key: Any = field(compare=False, default=None)
    random: bool = False


class Names:
    """A dictionary, or the attributes of an object."""

    def __init__(self, owner: MutableMapping[Any, Any], name: Callable[[Any], str]) -> None:
        self.owner, self._name = owner, name
        self._saved = dict(owner)

    def changes(self) -> Iterator[Change]:
        """What is bound otherwise than before."""
        now = dict(self.owner)  # a subclass may have a `get` of its own
        for key in self._saved | now:
            before, after = self._saved.get(key, ABSENT), now.get(key, ABSENT)
            if not _same(before, after):
                yield Change(self._name(key), before, after, self, key)

    def put_back(self) -> None:
        """Bind everything as before."""
        for change in list(self.changes()):
            self.put(change.key, change.before)

    def put(self, key: Any, value: Any) -> None:
        """Bind one name."""
        set_item, delete = (dict.__setitem__, dict.__delitem__) if isinstance(self.owner, dict) else _MAPPING
        if value is ABSENT:
            delete(self.owner, key)
        else:
            set_item(self.owner, key, value)


class ClassNames(Names):
    """The attributes of a class, which are written by `setattr` only."""

    def __init__(self, owner: type, name: Callable[[Any], str]) -> None:
        super().__init__(vars(owner), name)  # type: ignore[arg-type]
        self._class = owner

    def put(self, key: Any, value: Any) -> None:
        """Bind one attribute."""
        if value is ABSENT:
            delattr(self._class, key)
        else:
            setattr(self._class, key, value)


class Items:
    """A list, a deque or a set."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self._name = owner, name
        self._saved = list(owner)

    def changes(self) -> Iterator[Change]:
        """The whole of it, where one item or their number differs."""
        now = list(self.owner)
        if len(now) != len(self._saved) or not all(map(_same, self._saved, now)):
            yield Change(self._name, self._saved, now, self)

    def put_back(self) -> None:
        """Fill it as before."""
        if any(True for _ in self.changes()):
            self.put(None, self._saved)

    def put(self, _: Any, value: Any) -> None:
        """Fill it with other items."""
        if isinstance(self.owner, list):
            self.owner[:] = value
        else:
            self.owner.clear()
            (self.owner.update if isinstance(self.owner, set) else self.owner.extend)(value)


class Cell:
    """A variable of a closure."""

    def __init__(self, owner: types.CellType, name: str) -> None:
        self.owner, self._name = owner, name
        self.value = self._saved = _content(owner)

    def changes(self) -> Iterator[Change]:
        """The variable, where it has another value."""
        after = _content(self.owner)
        if not _same(self._saved, after):
            yield Change(self._name, self._saved, after, self)

    def put_back(self) -> None:
        """Give the variable its value again."""
        if any(True for _ in self.changes()):
            self.put(None, self._saved)

    def put(self, _: Any, value: Any) -> None:
        """Give the variable a value."""
        if value is not ABSENT:
            self.owner.cell_contents = value


class Dial:
    """Something whose state is read and set as a whole: a generator of random numbers, the memory of `lru_cache`."""

    def __init__(self, name: str, read: Callable[[], Any], write: Callable[[Any], Any], *, is_random: bool) -> None:
        self._name, self._read, self._write, self._random = name, read, write, is_random
        self._saved = read()

    def changes(self) -> Iterator[Change]:
        """Its name, where it has moved on."""
        after = self._read()
        if not _equal_states(self._saved, after):
            yield Change(self._name, self._saved, after, self, random=self._random)

    def put_back(self) -> None:
        """Set it to where it was."""
        if any(True for _ in self.changes()):
            self._write(self._saved)

    def put(self, _: Any, value: Any) -> None:
        """Set it."""
        self._write(value)


Place = Names | Items | Cell | Dial


def dial_of(value: Any, name: str) -> Dial | None:
    """The dial of a generator of random numbers or of a function under `lru_cache`; None for everything else."""
    if isinstance(value, random.Random):
        return Dial(name, value.getstate, value.setstate, is_random=True)
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        return Dial(name, lambda: bits.state, lambda s: setattr(bits, "state", s), is_random=True)
    if isinstance(value, np.random.RandomState):
        return Dial(name, value.get_state, value.set_state, is_random=True)
    if isinstance(value, torch.Generator):
        return Dial(name, value.get_state, value.set_state, is_random=True)
    if isinstance(value, functools._lru_cache_wrapper):
        # what a cache held cannot be put back, and can be computed again; made in a recording, it is fake
        return Dial(name, lambda: value.cache_info()[1], lambda _: value.cache_clear(), is_random=False)
    return None


def random_dials() -> list[Dial]:
    """The generators that Python and NumPy have for everyone."""
    numpy_state = Dial("NumPy's random numbers", np.random.get_state, np.random.set_state, is_random=True)
    return [Dial("Python's random numbers", random.getstate, random.setstate, is_random=True), numpy_state]


def is_container(value: Any) -> bool:
    """Whether a value holds others and can be changed."""
    return isinstance(value, (dict, list, set, deque))


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet assigned
        return ABSENT


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if type(a) in (tuple, torch.Size):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) in _PLAIN and bool(a == b or (a != a and b != b))


def _equal_states(a: Any, b: Any) -> bool:
    if isinstance(a, (torch.Tensor, np.ndarray)):
        return bool((a == b).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal_states(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_equal_states, a, b))
    return bool(a == b)
