"""The places where Python keeps state: namespaces, containers, cells of closures, generators of random numbers.

A place remembers its content. It names the changes since then, and undoes them.
"""

from __future__ import annotations

import functools
import operator
import random
import types
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from utcompile.graph.memory import memory_of

K = TypeVar("K")
Container = dict[object, object] | list[object] | set[object] | deque[object]
_PLAIN = frozenset([bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device])


class _Absent:
    """The content of a place under a name that it does not have."""

    def __repr__(self) -> str:
        return "nothing"


ABSENT = _Absent()
OTHER_MEMORY = object()  # `Change.after` of a tensor that was given other memory
_HOOKS = [name for name, value in vars(nn.Module()).items() if "hooks" in name and isinstance(value, dict)]
_LARGE = 2**16  # an array of more numbers is not looked at


@dataclass(frozen=True)
class Change:
    """A difference that a run of a model left behind.

    Attributes:
        name: as a person reads it: `blocks.0.attn.cache['cpu']`.
        before: the value before the run; `ABSENT` where there was none.
        after: the value now.
        place: the place that changed.
        key: under which key, attribute or index of the place.
        random: a generator of random numbers has moved on.
    """

    name: str
    before: object = field(compare=False, default=ABSENT)
    after: object = field(compare=False, default=ABSENT)
    place: Place | None = field(compare=False, default=None, repr=False)
    key: object = field(compare=False, default=None)
    random: bool = False


class Place(ABC):
    """A place with state: it names what has changed, and puts the former state back."""

    @abstractmethod
    def changes(self) -> Iterator[Change]:
        """What differs from the moment when the place was made."""

    @abstractmethod
    def put(self, key: object, value: object) -> None:
        """Write a value of a `Change`, under its key."""

    def put_back(self) -> None:
        """Write the former values."""
        for change in list(self.changes()):
            self.put(change.key, change.before)


class Names(Place):
    """A dictionary, or the attributes of an object."""

    def __init__(self, owner: MutableMapping[Any, object], name: Callable[[Any], str]) -> None:
        self.owner, self._name = owner, name
        self._saved = dict(entries(owner))

    def changes(self) -> Iterator[Change]:
        """The names that are bound to other values than before."""
        now = dict(entries(self.owner))
        if _identical(now.values(), self._saved.values()) and list(now) == list(self._saved):
            return
        for key in self._saved | now:
            before, after = self._saved.get(key, ABSENT), now.get(key, ABSENT)
            if not _same(before, after):
                yield Change(self._name(key), before, after, self, key)

    def put(self, key: object, value: object) -> None:
        """Bind one name."""
        if value is ABSENT:
            self.owner.pop(key, None)
        elif isinstance(self.owner, dict):
            dict.__setitem__(self.owner, key, value)  # a subclass may have another `__setitem__`
        else:
            self.owner[...] = np.asarray(value)


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


class Items(Place):
    """A list, a deque or a set."""

    def __init__(self, owner: list[object] | deque[object] | set[object], name: str) -> None:
        self.owner, self._name = owner, name
        self._saved = list(owner)

    def changes(self) -> Iterator[Change]:
        """One change for all items, where an item or the number of items differs."""
        now = list(self.owner)
        if _identical(now, self._saved):
            return
        if len(now) != len(self._saved) or not all(map(_same, self._saved, now)):
            yield Change(self._name, self._saved, now, self)

    def put(self, key: object, value: object) -> None:
        """Put other items in."""
        assert isinstance(value, list)
        if isinstance(self.owner, list):
            self.owner[:] = value
        else:
            self.owner.clear()
            (self.owner.update if isinstance(self.owner, set) else self.owner.extend)(value)


class Cell(Place):
    """A variable of a closure."""

    def __init__(self, owner: types.CellType, name: str) -> None:
        self.owner, self._name = owner, name
        self.value = self._saved = content(owner)

    def changes(self) -> Iterator[Change]:
        """The variable, where it has another value."""
        after = content(self.owner)
        if not _same(self._saved, after):
            yield Change(self._name, self._saved, after, self)

    def put(self, key: object, value: object) -> None:
        """Give the variable a value."""
        if value is not ABSENT:
            self.owner.cell_contents = value


class Dial(Place):
    """A generator of random numbers, whose state is read and set as a whole."""

    def __init__(self, name: str, read: Callable[[], object], write: Callable[[Any], object]) -> None:
        self._name, self._read, self._write = name, read, write
        self._saved = read()

    def changes(self) -> Iterator[Change]:
        """One change, where numbers were drawn."""
        after = self._read()
        if not _equal_states(self._saved, after):
            yield Change(self._name, self._saved, after, self, random=True)

    def put(self, key: object, value: object) -> None:
        """Set another state."""
        self._write(value)


class Array(Place):
    """The numbers of a NumPy array."""

    def __init__(self, owner: NDArray[np.generic], name: str) -> None:
        self.owner, self._name = owner, name
        self._saved = owner.copy()

    def changes(self) -> Iterator[Change]:
        """The array, where a number differs."""
        if not np.array_equal(self.owner, self._saved, equal_nan=self.owner.dtype.kind in "fc"):
            yield Change(self._name, self._saved, self.owner.copy(), self)

    def put(self, key: object, value: object) -> None:
        """Write other numbers."""
        self.owner[...] = np.asarray(value)


class Storages(Place):
    """The memory of a module's parameters and buffers: `weight.data = …` gives them another."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], name: Callable[[str], str]) -> None:
        self.owner, self._name = tensors, name
        # a fake has no values to give back, and another tensor over its memory costs as much as an operation
        self._saved = {
            key: (t, t if isinstance(t, FakeTensor) else t.detach(), memory_of(t)) for key, t in tensors.items()
        }

    def changes(self) -> Iterator[Change]:
        """The tensors that have other memory."""
        for key, (tensor, before, memory) in self._saved.items():
            if memory_of(tensor) != memory:
                yield Change(self._name(key), before, OTHER_MEMORY, self, key)

    def put(self, key: object, value: object) -> None:
        """Give a tensor the memory of another."""
        if isinstance(value, torch.Tensor):
            self._saved[str(key)][0].data = value


class Hooks(Place):
    """The hooks of all modules of a model: transformers adds some in the first call."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        tables = (vars(m).get(name) for m in modules for name in _HOOKS)
        self.owner = [(t, list(t.items())) for t in tables if isinstance(t, dict)]

    def changes(self) -> Iterator[Change]:
        """One change for all hooks."""
        if any(list(table.items()) != saved for table, saved in self.owner):
            yield Change("hooks of its modules", None, None, self)

    def put_back(self) -> None:
        """Remove added hooks, and add removed ones again."""
        for table, saved in self.owner:
            if list(table.items()) != saved:
                table.clear()
                table.update(saved)

    def put(self, key: object, value: object) -> None:
        """Nothing: hooks are never judged alone."""


class Cache(Place):
    """A function under `lru_cache`: its results are no state, but must not be fake when the recording is over."""

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


def function_in(value: object) -> types.FunctionType | None:
    """The Python function in a function, method, property, partial or function with a cache; None for other values."""
    while not isinstance(value, types.FunctionType):
        if isinstance(value, (staticmethod, classmethod, types.MethodType)):
            value = value.__func__
        elif isinstance(value, property):
            value = value.fget
        elif isinstance(value, functools.partial):
            value = value.func
        elif isinstance(value, functools._lru_cache_wrapper):
            value = value.__wrapped__
        else:
            return None
    return value


def content(cell: types.CellType) -> object:
    """The value of a closure's variable; `ABSENT` where it is not assigned yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return ABSENT


def _identical(now: Collection[object], before: Collection[object]) -> bool:
    """Whether nothing was bound again, which is a quick check."""
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
