"""Small functions that stand in captured graphs: what a model derived from its inputs or its mode, derived again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from utcompile.errors import UtcError


def finfo(dtype: torch.dtype, field: str) -> float:
    """A limit of a floating-point type: `torch.finfo(x.dtype).min` of the captured model.

    >>> finfo(torch.float32, "eps") == torch.finfo(torch.float32).eps
    True
    """
    return float(getattr(torch.finfo(dtype), field))


def by_mode(training: bool, in_training: Any, in_eval: Any) -> Any:
    """An argument that the model chose by its mode: `dropout_p=0.1 if self.training else 0.0`."""
    return in_training if training else in_eval


def set_grad_enabled(enabled: bool) -> bool:
    """Enter or leave a `no_grad` region; returns what to restore."""
    before = torch.is_grad_enabled()
    torch._C._set_grad_enabled(enabled)
    return before


def captured_as(given: Any, recorded: Any, name: str) -> None:
    """Refuse another value of an argument whose value at capture is part of the graph.

    Raises:
        UtcError: the values differ.
    """
    if given is not recorded and given != recorded:
        raise UtcError(
            f"the captured model was recorded with {name}={recorded!r}, not {given!r}",
            fix=f"capture it again with {name}={given!r} among the example inputs",
        )


@dataclass(frozen=True)
class Rebuild:
    """Makes an object of a class again from its attributes: a model's output that is neither tensor nor container."""

    cls: type

    def __post_init__(self) -> None:
        object.__setattr__(self, "__name__", f"rebuild_{self.cls.__name__}")

    def __call__(self, **attributes: Any) -> Any:
        made: Any = object.__new__(self.cls)
        vars(made).update(attributes)
        return made


@dataclass(frozen=True)
class Apply:
    """Calls a `torch.autograd.Function`, with its own backward."""

    function: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "__name__", self.function.__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function.apply(*args, **kwargs)
