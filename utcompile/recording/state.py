"""The Python state that a model's `forward` leaves behind, found by comparing before and after.

A snapshot knows the attributes of every module, in containers and plain objects too, and what the functions of the
model's classes can reach: globals of their Python modules, variables of closures, default arguments, attributes of
classes, caches of `lru_cache`, generators of random numbers. It names what has changed, and puts it back.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from utcompile.recording.places import (
    Cache,
    Cell,
    Change,
    ClassNames,
    Container,
    Hooks,
    Items,
    Names,
    Place,
    Storages,
    entries,
    function_in,
    is_container,
    random_dials,
    sealed,
)

T = torch.Tensor
_DEPTH = 4  # containers in containers, attributes of objects
_LONG = 2000  # items of a container that are looked at
_OWN_OF_TORCH = frozenset(vars(nn.Module())) - {"training", "_parameters", "_buffers", "_modules"}
_TABLES = ("_parameters", "_buffers", "_modules")
_ATOMS = frozenset([bool, int, float, str, type(None), T, nn.Parameter, types.FunctionType, type, types.ModuleType])
_NOT_ENTERED = (T, nn.Module, type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType)
_FOREIGN = frozenset(["torch", "builtins", "numpy"])
_PLAIN_HOMES = frozenset(["types", "argparse", "collections"])  # of `SimpleNamespace`, `Namespace`, `UserDict`


class Snapshot:
    """The Python state of a model, or of its surroundings.

    Args:
        places: where to look.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> before = Snapshot.of_model(model)
        >>> model.calls = 1
        >>> [change.name for change in before.changes()]
        ['calls']
        >>> before.put_back()
        >>> hasattr(model, "calls")
        False
    """

    def __init__(self, places: Iterable[Place]) -> None:
        self._places = list(places)

    @classmethod
    def of_model(cls, model: nn.Module) -> Snapshot:
        """The attributes of every module of a model."""
        return cls(_Walk().model(model))

    @classmethod
    def of_surroundings(cls, model: nn.Module) -> Snapshot:
        """Everything that the code of a model's classes can reach, and the random numbers of Python and NumPy."""
        return cls([*random_dials(), *_Walk().surroundings(model)])

    def changes(self) -> list[Change]:
        """All differences from the moment of the snapshot."""
        return [change for place in self._places for change in place.changes()]

    def forget_caches(self) -> None:
        """Clear the caches of `lru_cache` that a recording has filled with fakes."""
        for place in self._places:
            if isinstance(place, Cache):
                place.put_back()

    def put_back(self) -> None:
        """Undo all changes."""
        for place in self._places:
            place.put_back()


class _Walk:
    """Collects places, each object once."""

    def __init__(self) -> None:
        self._seen: dict[int, object] = {}  # the objects too, so that their identities stay theirs

    def _is_new(self, value: object) -> bool:
        if id(value) in self._seen:
            return False
        self._seen[id(value)] = value
        return True

    # --- a model ----------------------------------------------------------------------------------------------------

    def model(self, model: nn.Module) -> Iterator[Place]:
        """The attributes, parameters, buffers and submodules of every module."""
        yield Hooks(model.modules())
        for path, module in model.named_modules():
            prefix = f"{path}." if path else ""
            yield _Attributes(vars(module), prefix.__add__)
            for table in vars(module).keys() & set(_TABLES):  # a scripted module keeps its own in C++
                yield Names(vars(module)[table], prefix.__add__)
            tensors = {k: t for table in _TABLES[:2] for k, t in vars(module).get(table, {}).items() if t is not None}
            if tensors:
                yield Storages(tensors, prefix.__add__)
            for name, value in list(vars(module).items()):
                if type(value) not in _ATOMS and name not in _OWN_OF_TORCH and name not in _TABLES:
                    yield from self._inside(value, prefix + name, _DEPTH)

    def _inside(self, value: object, name: str, depth: int) -> Iterator[Place]:
        """The places in a value: containers, and the attributes of objects."""
        if type(value) in _ATOMS:
            return
        place = sealed(value, name)
        if place is not None:
            if self._is_new(value):
                yield place
        elif isinstance(value, tuple) and depth:
            for i, item in enumerate(value[:_LONG]):
                yield from self._inside(item, f"{name}[{i}]", depth - 1)
        elif is_container(value):
            if self._is_new(value):
                yield from self._container(value, name, depth)
        elif depth and _is_entered(value) and self._is_new(value):
            yield Names(vars(value), f"{name}.{{}}".format)
            for key, item in list(vars(value).items()):
                yield from self._inside(item, f"{name}.{key}", depth - 1)

    def _container(self, value: Container, name: str, depth: int) -> Iterator[Place]:
        yield Names(value, lambda key: f"{name}[{key!r}]") if isinstance(value, dict) else Items(value, name)
        if depth and len(value) <= _LONG and not isinstance(value, set):
            for key, item in entries(value) if isinstance(value, dict) else enumerate(value):
                yield from self._inside(item, f"{name}[{key!r}]", depth - 1)

    # --- its surroundings -------------------------------------------------------------------------------------------

    def surroundings(self, model: nn.Module) -> Iterator[Place]:
        """Globals, closures, defaults and class attributes of the model's code."""
        classes = _classes(model)
        own = (value for klass in classes for value in vars(klass).values())
        functions = [*_functions(own), *_functions(_attributes(model))]
        modules = dict.fromkeys([*(c.__module__ for c in classes), *(f.__module__ for f in functions)])
        for klass in classes:
            yield ClassNames(klass, f"{klass.__name__}.{{}}".format)
            for name, value in list(vars(klass).items()):
                if not name.startswith("__"):
                    yield from self._inside(value, f"{klass.__name__}.{name}", 2)
        for name in modules:
            module = sys.modules.get(name or "")
            if module is not None and self._is_new(vars(module)):
                yield _Globals(vars(module), f"{name}.{{}}".format)
                for key, value in list(vars(module).items()):
                    if not key.startswith("__"):
                        yield from self._inside(value, f"{name}.{key}", 2)
                    if isinstance(value, types.FunctionType) and value.__module__ == name:
                        functions.append(value)
        for function in functions:
            yield from self._function(function)

    def _function(self, function: types.FunctionType) -> Iterator[Place]:
        if not self._is_new(function):
            return
        name = function.__qualname__
        for default in [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]:
            yield from self._inside(default, f"a default of {name}", 2)
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if self._is_new(cell):
                place = Cell(cell, f"{variable} in {name}")
                yield place
                value = place.value
                if isinstance(value, types.FunctionType):
                    yield from self._function(value)
                else:
                    yield from self._inside(value, f"{variable} in {name}", 2)


class _Attributes(Names):
    """A module's own attributes, without those of torch and the methods that TorchScript makes on access."""

    def changes(self) -> Iterator[Change]:
        own = (c for c in super().changes() if c.key not in _OWN_OF_TORCH and c.key not in _TABLES)
        return (c for c in own if not any(isinstance(v, torch.ScriptMethod) for v in (c.before, c.after)))


class _Globals(Names):
    """The globals of a Python module; what it imports or defines late is no state."""

    def changes(self) -> Iterator[Change]:
        return (c for c in super().changes() if not isinstance(c.after, (type, types.ModuleType, types.FunctionType)))


def _is_entered(value: object) -> bool:
    """Whether the attributes of an object are state: its class is not of torch, nor of Python's own library."""
    if isinstance(value, _NOT_ENTERED) or not hasattr(value, "__dict__"):
        return False
    home = type(value).__module__.partition(".")[0]
    return home in _PLAIN_HOMES or (home not in _FOREIGN and home not in sys.stdlib_module_names)


def _is_of_the_model(module: str | None) -> bool:
    return bool(module) and str(module).partition(".")[0] not in _FOREIGN | {"utcompile"}


def _classes(model: nn.Module) -> list[type]:
    """The classes of a model's modules and their bases, without those of torch."""
    found = dict.fromkeys(c for m in dict.fromkeys(map(type, model.modules())) for c in m.__mro__)
    return [c for c in found if _is_of_the_model(c.__module__)]


def _attributes(model: nn.Module) -> Iterator[object]:
    """Attributes of modules and their items: hooks, a `forward` of one instance, functions given to `__init__`."""
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, dict):
                yield from dict.values(value)
            elif type(value) is list:
                yield from value
            else:
                yield value


def _functions(values: Iterable[object]) -> Iterator[types.FunctionType]:
    """The functions among values that are the model's own code."""
    for value in values:
        function = function_in(value)
        if function is not None and _is_of_the_model(function.__module__):
            yield function
