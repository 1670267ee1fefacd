"""Small functions in captured graphs: they derive from inputs and mode again what the model's Python code derived."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from utcompile.errors import UtcError


def finfo(dtype: torch.dtype, field: str) -> float:
    """A limit of a floating-point type: `torch.finfo(x.dtype).min` of the captured model.

    >>> finfo(torch.float32, "eps") == torch.finfo(torch.float32).eps
    True
    """
    return float(getattr(torch.finfo(dtype), field))


def by_mode(training: bool, in_training: object, in_eval: object) -> object:
    """An argument that the model chose by its mode: `dropout_p=0.1 if self.training else 0.0`."""
    return in_training if training else in_eval


def set_grad_enabled(enabled: bool) -> bool:
    """Enter or leave a `no_grad` region; returns what to restore."""
    before = torch.is_grad_enabled()
    torch._C._set_grad_enabled(enabled)
    return before


def captured_as(given: object, recorded: object, name: str) -> None:
    """Refuse another value of an argument whose value at capture is part of the graph.

    Raises:
        UtcError: the values differ.
    """
    if given is not recorded and given != recorded:
        raise UtcError(
            f"the captured model was recorded with {name}={recorded!r}, not {given!r}",
            fix=f"capture it again with {name}={given!r} in the example inputs",
        )


def same_values(given: torch.Tensor, recorded: torch.Tensor, name: str) -> None:
    """Refuse another value of an input whose values at capture are part of the graph; not asked while compiling.

    Raises:
        UtcError: the values differ.
    """
    if torch.compiler.is_compiling():
        return
    if given.shape != recorded.shape or not torch.equal(given, recorded.to(given.device)):
        raise UtcError(
            f"the captured model was recorded with {name}={recorded.tolist()}, not {given.tolist()}",
            why="the model's Python code reads these values as sizes",
            fix="capture it again with these values among the example inputs",
        )


def same_choice(given: torch.Tensor, recorded: object, source: str) -> None:
    """Refuse a call in which Python would have read another value than at capture; not asked while compiling.

    Raises:
        UtcError: the value differs.
    """
    if torch.compiler.is_compiling():
        return
    value = given.tolist()
    if value != recorded:
        raise UtcError(
            f"the model's Python code would run otherwise: it reads {value!r}, and read {recorded!r} at capture",
            where=source,
            fix="capture it again on inputs like these; or move that code into a submodule, which stays one node",
        )


@dataclass(frozen=True)
class Rebuild:
    """Makes an object of a class again from its attributes: a model's output that is neither tensor nor container."""

    cls: type

    def __post_init__(self) -> None:
        object.__setattr__(self, "__name__", f"rebuild_{self.cls.__name__}")

    def __call__(self, **attributes: object) -> object:
        made: object = object.__new__(self.cls)
        vars(made).update(attributes)
        return made


@dataclass(frozen=True)
class InOrder:
    """Makes a dataclass that is a dictionary too, such as transformers' `ModelOutput`, with its keys in the order in
    which the model assigned them, which is not that of the fields.
    """

    cls: Callable[..., OrderedDict[str, object]]
    keys: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "__name__", self.cls.__name__)

    def __call__(self, **fields: object) -> object:
        made = self.cls(**fields)
        for key in self.keys:
            made.move_to_end(key)
        return made


@dataclass(frozen=True)
class Apply:
    """Calls a `torch.autograd.Function`, with its own backward."""

    function: type[torch.autograd.Function]

    def __post_init__(self) -> None:
        object.__setattr__(self, "__name__", self.function.__name__)

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self.function.apply(*args, **kwargs)


class ScriptFunction(Protocol):
    """What utcompile uses of a `torch.jit.ScriptFunction`."""

    @property
    def name(self) -> str:
        """The name of the Python function that was scripted."""

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Run it."""


@dataclass(frozen=True)
class Scripted:
    """Calls a scripted function: one node, as recording does not see what TorchScript runs."""

    function: ScriptFunction

    def __post_init__(self) -> None:
        object.__setattr__(self, "__name__", self.function.name)

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self.function(*args, **kwargs)
