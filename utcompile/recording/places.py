"""Where Python keeps state: namespaces, containers, cells of closures, generators of random numbers.

A place remembers what it held. It names what has changed since, and puts that back.
"""

from __future__ import annotations

import functools
import operator
import random
import types
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

K = TypeVar("K")
Container = dict[object, object] | list[object] | set[object] | deque[object]
_PLAIN = frozenset([bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device])


class _Absent:
    """What a place holds under a name that it does not have."""

    def __repr__(self) -> str:
        return "nothing"


ABSENT = _Absent()
OTHER_MEMORY = object()  # what `Storages` has after a tensor was given other memory
_HOOKS = [name for name, value in vars(nn.Module()).items() if "hooks" in name and isinstance(value, dict)]
_LARGE = 2**16  # an array of more numbers is not looked at


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
    before: object = field(compare=False, default=ABSENT)
    after: object = field(compare=False, default=ABSENT)
    place: Place | None = field(compare=False, default=None, repr=False)
    key: object = field(compare=False, default=None)
    random: bool = False


class Names:
    """A dictionary, or the attributes of an object."""

    def __init__(self, owner: MutableMapping[Any, object], name: Callable[[Any], str]) -> None:
        self.owner, self._name = owner, name
        self._saved = dict(entries(owner))

    def changes(self) -> Iterator[Change]:
        """What is bound otherwise than before."""
        now = dict(entries(self.owner))
        if _identical(now.values(), self._saved.values()) and list(now) == list(self._saved):
            return
        for key in self._saved | now:
            before, after = self._saved.get(key, ABSENT), now.get(key, ABSENT)
            if not _same(before, after):
                yield Change(self._name(key), before, after, self, key)

    def put_back(self) -> None:
        """Bind everything as before."""
        for change in list(self.changes()):
            self.put(change.key, change.before)

    def put(self, key: object, value: object) -> None:
        """Bind one name."""
        if value is ABSENT:
            self.owner.pop(key, None)
        elif isinstance(self.owner, dict):
            dict.__setitem__(self.owner, key, value)  # a subclass may have a `__setitem__` of its own
        else:
            self.owner[key] = value


class ClassNames(Names):
    """The attributes of a class, which are written by `setattr` only."""

    def __init__(self, owner: type, name: Callable[[object], str]) -> None:
        super().__init__(vars(owner), name)  # type: ignore[arg-type]
        self._class = owner

    def put(self, key: object, value: object) -> None:
        """Bind one attribute."""
        if value is ABSENT:
            delattr(self._class, str(key))
        else:
            setattr(self._class, str(key), value)


class Items:
    """A list, a deque or a set."""

    def __init__(self, owner: list[object] | deque[object] | set[object], name: str) -> None:
        self.owner, self._name = owner, name
        self._saved = list(owner)

    def changes(self) -> Iterator[Change]:
        """The whole of it, where one item or their number differs."""
        now = list(self.owner)
        if _identical(now, self._saved):
            return
        if len(now) != len(self._saved) or not all(map(_same, self._saved, now)):
            yield Change(self._name, self._saved, now, self)

    def put_back(self) -> None:
        """Fill it as before."""
        if any(True for _ in self.changes()):
            self.put(None, self._saved)

    def put(self, _: object, value: Any) -> None:
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

    def put(self, _: object, value: object) -> None:
        """Give the variable a value."""
        if value is not ABSENT:
            self.owner.cell_contents = value


class Dial:
    """A generator of random numbers, whose state is read and set as a whole."""

    def __init__(self, name: str, read: Callable[[], object], write: Callable[[Any], object]) -> None:
        self._name, self._read, self._write = name, read, write
        self._saved = read()

    def changes(self) -> Iterator[Change]:
        """Its name, where it has moved on."""
        after = self._read()
        if not _equal_states(self._saved, after):
            yield Change(self._name, self._saved, after, self, random=True)

    def put_back(self) -> None:
        """Set it to where it was."""
        if any(True for _ in self.changes()):
            self._write(self._saved)

    def put(self, _: object, value: object) -> None:
        """Set it."""
        self._write(value)


class Array:
    """The numbers of a NumPy array."""

    def __init__(self, owner: NDArray[np.generic], name: str) -> None:
        self.owner, self._name = owner, name
        self._saved = owner.copy()

    def changes(self) -> Iterator[Change]:
        """The array, where a number differs."""
        if not np.array_equal(self.owner, self._saved, equal_nan=self.owner.dtype.kind in "fc"):
            yield Change(self._name, self._saved, self.owner.copy(), self)

    def put_back(self) -> None:
        """Write the numbers again."""
        if any(True for _ in self.changes()):
            self.put(None, self._saved)

    def put(self, _: object, value: Any) -> None:
        """Write other numbers."""
        self.owner[...] = value


class Storages:
    """Which memory the parameters and buffers of a module have: `weight.data = …` gives them another."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], name: Callable[[str], str]) -> None:
        self.owner, self._name = tensors, name
        # a fake has no values to give back, and another tensor over its memory costs as much as an operation
        self._saved = {
            key: (t, t if isinstance(t, FakeTensor) else t.detach(), _memory(t)) for key, t in tensors.items()
        }

    def changes(self) -> Iterator[Change]:
        """The tensors that have other memory."""
        for key, (tensor, before, memory) in self._saved.items():
            if _memory(tensor) != memory:
                yield Change(self._name(key), before, OTHER_MEMORY, self, key)

    def put_back(self) -> None:
        """Give every tensor its memory again."""
        for change in list(self.changes()):
            self.put(change.key, change.before)

    def put(self, key: object, value: object) -> None:
        """Give a tensor the memory of another."""
        if isinstance(value, torch.Tensor):
            self._saved[str(key)][0].data = value


class Hooks:
    """The hooks of all modules of a model: transformers puts some on in the first call."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        tables = (vars(m).get(name) for m in modules for name in _HOOKS)
        self.owner = [(t, list(t.items())) for t in tables if isinstance(t, dict)]

    def changes(self) -> Iterator[Change]:
        """One for all of them."""
        if any(list(table.items()) != saved for table, saved in self.owner):
            yield Change("hooks of its modules", None, None, self)

    def put_back(self) -> None:
        """Take off what was put on, and put on what was taken off."""
        for table, saved in self.owner:
            if list(table.items()) != saved:
                table.clear()
                table.update(saved)

    def put(self, key: object, value: object) -> None:
        """Hooks that were put on stay."""


class Cache:
    """A function under `lru_cache`: what it keeps is no state, but must not be fake when the recording is over."""

    def __init__(self, owner: functools._lru_cache_wrapper[object]) -> None:
        self.owner = owner
        self._saved = owner.cache_info().misses

    def changes(self) -> Iterator[Change]:
        """None: every call could compute it again."""
        return iter(())

    def put_back(self) -> None:
        """Forget everything, where something was added."""
        if self.owner.cache_info().misses != self._saved:
            self.owner.cache_clear()
            self._saved = 0

    def put(self, key: object, value: object) -> None:
        """Nothing can be put into it."""


Place = Names | Items | Cell | Dial | Array | Storages | Hooks | Cache


def sealed(value: object, name: str) -> Dial | Array | Cache | None:
    """The place of a generator of random numbers, an array, a function under `lru_cache`; None for everything else."""
    if isinstance(value, np.ndarray):
        return Array(value, name) if value.size <= _LARGE and value.dtype != object else None
    if isinstance(value, random.Random):
        return Dial(name, value.getstate, value.setstate)
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        return Dial(name, lambda: bits.state, lambda s: setattr(bits, "state", s))
    if isinstance(value, (np.random.RandomState, torch.Generator)):
        return Dial(name, value.get_state, value.set_state)
    return Cache(value) if isinstance(value, functools._lru_cache_wrapper) else None


def random_dials() -> list[Dial]:
    """The generators that Python and NumPy have for everyone."""
    numpy_state = Dial("NumPy's random numbers", np.random.get_state, np.random.set_state)
    return [Dial("Python's random numbers", random.getstate, random.setstate), numpy_state]


def entries(owner: Mapping[K, object]) -> list[tuple[K, object]]:
    """What a dictionary contains; the `items` of a subclass may make things (transformers' `ACT2FN`)."""
    return list(dict.items(owner) if isinstance(owner, dict) else owner.items())


def is_container(value: object) -> TypeGuard[Container]:
    """Whether a value contains others and can be changed."""
    return isinstance(value, (dict, list, set, deque))


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not yet assigned
        return ABSENT


def _identical(now: Collection[object], before: Collection[object]) -> bool:
    """Whether nothing was bound again, which is quickly seen."""
    return len(now) == len(before) and all(map(operator.is_, now, before))


def _same(a: object, b: object) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if type(a) in (tuple, torch.Size) and isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) in _PLAIN and bool(a == b or (a != a and b != b))


def _equal_states(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and all(type(v) in (int, float, type(None)) for v in a):
        return bool(a == b)
    if isinstance(a, (torch.Tensor, np.ndarray)):
        return bool((a == b).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal_states(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_equal_states, a, b))
    return bool(a == b)


def _memory(tensor: torch.Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # a sparse tensor has none
        return 0
