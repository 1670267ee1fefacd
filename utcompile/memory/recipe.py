"""How a value is made again from values that autograd keeps anyway."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from utcompile.graph import autocast_dtype


@dataclass(frozen=True)
class Ref:
    """A value of a recipe: first those that it is given, then the results of its steps."""

    index: int


@dataclass(frozen=True)
class Step:
    """One call of a recipe; `Ref`s stand for tensors in its arguments."""

    function: Callable[..., torch.Tensor]
    args: tuple[object, ...]
    kwargs: Mapping[str, object]


@dataclass(frozen=True)
class Recipe:
    """Calls that make a value again.

    Attributes:
        steps: in order; the last one's result is the value.

    Example:
        >>> recipe = Recipe((Step(torch.relu, (Ref(0),), {}),))
        >>> recipe.make([torch.tensor([-1.0, 2.0])])
        tensor([0., 2.])
    """

    steps: tuple[Step, ...]

    def make(self, given: Sequence[object]) -> torch.Tensor:
        """The value, from what the recipe starts from."""
        known = list(given)
        for step in self.steps:
            args = [_filled(a, known) for a in step.args]
            kwargs = {k: _filled(a, known) for k, a in step.kwargs.items()}
            made = step.function(*args, **kwargs)
            known.append(made)
        return made


def _filled(value: object, known: Sequence[object]) -> object:
    """An argument with values in the places of its `Ref`s, also inside sequences (a shape) and slices."""
    if isinstance(value, Ref):
        return known[value.index]
    if isinstance(value, (tuple, list)):
        return type(value)(_filled(v, known) for v in value)
    if isinstance(value, slice):
        return slice(_filled(value.start, known), _filled(value.stop, known), _filled(value.step, known))
    return value


@dataclass(frozen=True)
class Remade:
    """A recipe, the autocast under which it was followed in forward, and what it starts from that is no tensor."""

    recipe: Recipe
    device: str
    lowered: torch.dtype | None
    others: Mapping[int, object]

    @classmethod
    def here(cls, recipe: Recipe, given: Sequence[object], like: torch.Tensor) -> tuple[Remade, list[torch.Tensor]]:
        """A recipe to be followed again as it would be followed now, and the tensors to keep for it."""
        others = {i: v for i, v in enumerate(given) if not isinstance(v, torch.Tensor)}
        device = like.device.type
        kept = [v for v in given if isinstance(v, torch.Tensor)]
        return cls(recipe, device, autocast_dtype(device), others), kept

    def make(self, kept: Sequence[torch.Tensor]) -> torch.Tensor:
        """The value again: in backward, where autocast is off."""
        tensors = iter(kept)
        count = len(kept) + len(self.others)
        given = [self.others[i] if i in self.others else next(tensors) for i in range(count)]
        if autocast_dtype(self.device) == self.lowered:
            return self.recipe.make(given)
        with torch.autocast(self.device, self.lowered, enabled=self.lowered is not None, cache_enabled=False):
            return self.recipe.make(given)
