"""Calls that do not fit a graph's inputs: an optional input of the model that was left out at capture."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from utcompile.errors import UtcError

_PLAIN = (bool, int, float, str, type(None))


Function = Callable[..., object]


@dataclass(frozen=True)
class Signature:
    """The parameters of the original model's forward.

    Attributes:
        names: its parameters, in order.
        defaults: of those that were left out at capture, where they are plain values.
        is_variadic: it takes `*args`, of which the graph takes as many as the example has.
    """

    names: tuple[str, ...] = ()
    defaults: Mapping[str, object] = field(default_factory=dict)
    is_variadic: bool = False

    @classmethod
    def of(cls, model: nn.Module, given: Mapping[str, object]) -> Signature:
        """The signature of a model whose example inputs are `given`."""
        parameters = inspect.signature(model.forward).parameters
        left = {n: p.default for n, p in parameters.items() if n not in given and isinstance(p.default, _PLAIN)}
        names = tuple(n for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
        return cls(names, left, any(p.kind is p.VAR_POSITIONAL for p in parameters.values()))

    def fitting(
        self, forward: Function, args: tuple[object, ...], kwargs: Mapping[str, object], error: TypeError
    ) -> dict[str, object]:
        """The arguments of a call that a graph's forward refused, without those that have their defaults.

        Raises:
            UtcError: the call has an input that was left out at capture, or does not fit otherwise.
            TypeError: `error`, where the call fits, so that it comes from inside.
        """
        taken = inspect.signature(forward).parameters
        if _fits(forward, args, kwargs):
            raise error
        if self.is_variadic:
            raise self._error("", forward, error)
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        for name in given.keys() - taken.keys():
            default = self.defaults.get(name, inspect.Parameter.empty)
            if given[name] is not default and (type(default) is not type(given[name]) or default != given[name]):
                raise self._error(name, forward, error)
        found = {k: v for k, v in given.items() if k in taken}
        if len(args) > len(self.names) or not _fits(forward, (), found):
            raise self._error("", forward, error)
        return found

    def _error(self, name: str, forward: Function, error: TypeError) -> UtcError:
        takes = f"it takes {inspect.signature(forward)}"
        if name not in self.names:
            return UtcError("the call does not fit the captured model's inputs", why=str(error), fix=takes)
        return UtcError(
            f"the captured model was recorded without '{name}', and the call gives it",
            why=takes,
            fix=f"capture it again with '{name}' in the example inputs",
        )


def _fits(forward: Function, args: tuple[object, ...], kwargs: Mapping[str, object]) -> bool:
    try:
        inspect.signature(forward).bind(*args, **kwargs)
    except TypeError:
        return False
    return True
