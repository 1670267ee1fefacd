"""The parameters that a unit read in forward, so that it reads the same when it runs again in backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import nn

from utcompile.tuners.recompute import RECIPE


class ReadParameters:
    """What a call is given that is no value of the step: parameters, modules, and changed weights.

    A checkpoint stores tensors in the usual way, and what comes back of such a parameter is a plain tensor where
    `save_on_cpu` or another pair of hooks is on. Operations that compute weights again tell parameters from values. So
    parameters are remembered here, as themselves.

    Between forward and backward a module may get other parameters: `functional_call` ends, or another task is put in
    place. As a context, this puts the first ones back, for the time of the second call.

    Args:
        given: the arguments of a call.
    """

    def __init__(self, given: Sequence[object]) -> None:
        self.own = {i: v for i, v in enumerate(given) if _is_own(v)}
        self.values = [v for i, v in enumerate(given) if i not in self.own]
        modules = [inside for v in given if isinstance(v, nn.Module) for inside in v.modules()]
        self.slots = [(m._parameters, name, p) for m in modules for name, p in m._parameters.items() if p is not None]
        direct = [v for v in self.own.values() if isinstance(v, nn.Parameter)]
        read = (*direct, *(p for _, _, p in self.slots))
        self.versions = [(p, p._version) for p in read if not p.is_inference()]
        self._before: list[list[tuple[dict[str, nn.Parameter | None], str, nn.Parameter | None]]] = []

    def bound(self, function: Callable[..., object]) -> Callable[..., object]:
        """The call as a function of its values alone."""

        def call(*values: object) -> object:
            left = iter(values)
            return function(*(self.own[i] if i in self.own else next(left) for i in range(count)))

        count = len(self.own) + len(self.values)
        return call

    def __enter__(self) -> Self:
        """Put the first parameters in place.

        Raises:
            RuntimeError: one of them was written in place meanwhile, as torch raises it of what it has saved.
        """
        if any(p._version != version for p, version in self.versions):
            raise RuntimeError(
                "a parameter of a block that runs again in backward was modified in place between forward and "
                "backward; call backward() before the optimizer's step"
            )
        others = [(slots, name, p) for slots, name, p in self.slots if slots.get(name) is not p]
        self._before.append([(slots, name, slots.get(name)) for slots, name, _ in others])
        _put(others)
        return self

    def __exit__(self, *_: object) -> None:
        _put(self._before.pop())


def _put(slots: Sequence[tuple[dict[str, nn.Parameter | None], str, nn.Parameter | None]]) -> None:
    for place, name, parameter in slots:
        place[name] = parameter


def _is_own(value: object) -> bool:
    """Whether a value is a parameter, or a weight that knows how it was made."""
    return isinstance(value, nn.Parameter) or (isinstance(value, torch.Tensor) and hasattr(value, RECIPE))
