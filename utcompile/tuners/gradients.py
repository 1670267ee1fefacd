"""The gradients of operations on a weight, from the operation's inputs and a weight that was computed again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from utcompile.graph import function_of, spellings
from utcompile.ops import Axes, Trait, having

Tensors = tuple[torch.Tensor, ...]
Gradients = tuple[torch.Tensor | None, ...]
Sides = int | list[int] | tuple[int, ...]  # of a convolution: a number per axis, or one for all

FUNCTIONS: Mapping[str, Callable[..., torch.Tensor]] = {
    **{name: function_of(name) for name in having(Trait.COUNTED) - having(Axes.SDPA)},
    "bmm": torch.bmm,
}
_SPELLED = {name: spellings.FUNCTIONS[function] for name, function in FUNCTIONS.items()}


@dataclass(frozen=True)
class Call:
    """A call of a function, without its tensors.

    Attributes:
        function: its name in `FUNCTIONS`.
        args: its positional arguments; None where a tensor was.
        kwargs: its keyword arguments; None where a tensor was.
        places: the places of the tensors in order: positions and names.
    """

    function: str
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    places: tuple[int | str, ...]

    @classmethod
    def of(
        cls, function: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> tuple[Call, tuple[torch.Tensor, ...]]:
        """A call, and its tensors."""
        every: list[tuple[int | str, object]] = [*enumerate(args), *kwargs.items()]
        found = {place: value for place, value in every if isinstance(value, torch.Tensor)}
        kept = tuple(None if isinstance(a, torch.Tensor) else a for a in args)
        named = {k: None if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
        return cls(function, kept, named, tuple(found)), tuple(found.values())

    @property
    def bias_at(self) -> int | None:
        """The number of the tensor that is a bias; None where there is none."""
        if self.function in ("matmul", "bmm", "einsum"):
            return None
        return next((i for i, place in enumerate(self.places) if place in (2, "bias")), None)

    def filled(self, values: Sequence[object]) -> tuple[list[object], dict[str, object]]:
        """The arguments, with values in the places of the tensors."""
        args, kwargs = list(self.args), dict(self.kwargs)
        for place, value in zip(self.places, values, strict=True):
            if isinstance(place, int):
                args[place] = value
            else:
                kwargs[place] = value
        return args, kwargs

    def run(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Its result."""
        args, kwargs = self.filled(tensors)
        return FUNCTIONS[self.function](*args, **kwargs)

    def by_name(self, names: Sequence[str], values: Sequence[object]) -> dict[str, Any]:
        """Its arguments by name."""
        args, kwargs = self.filled(values)
        return {**dict(zip(names, args, strict=False)), **kwargs}

    def gradients(self, grad: torch.Tensor, tensors: Sequence[torch.Tensor], needed: Sequence[bool]) -> Gradients:
        """The gradients of the tensors, None where `needed` is false. They are differentiable."""
        if self.function == "linear":
            return self._of_linear(grad, tensors, needed)
        if self.function.startswith("conv"):
            return self._of_convolution(grad, tensors, needed)
        if self.function in ("matmul", "bmm") and all(t.dim() > 1 for t in tensors):
            return _of_product(grad, tensors[0], tensors[1], needed)
        return self._by_autograd(grad, tensors, needed)

    def _of_linear(self, grad: torch.Tensor, tensors: Sequence[torch.Tensor], needed: Sequence[bool]) -> Gradients:
        named = self.by_name(("input", "weight", "bias"), tensors)
        order = self.by_name(("input", "weight", "bias"), range(len(tensors)))
        x, weight = named["input"], named["weight"]
        if weight.dim() != 2:
            return self._by_autograd(grad, tensors, needed)
        flat = grad.reshape(-1, grad.shape[-1])
        found = {
            "input": lambda: grad @ weight,
            "weight": lambda: flat.t() @ x.reshape(-1, x.shape[-1]),
            "bias": lambda: flat.sum(0),
        }
        makers = {order[name]: make for name, make in found.items() if isinstance(named.get(name), torch.Tensor)}
        return tuple(makers[i]() if needed[i] else None for i in range(len(tensors)))

    def _of_convolution(self, grad: torch.Tensor, tensors: Sequence[torch.Tensor], needed: Sequence[bool]) -> Gradients:
        transposed = "transpose" in self.function
        names, defaults = _SPELLED[self.function].schema, _SPELLED[self.function].defaults
        a = {**defaults, **self.by_name(names, tensors)}
        x, weight = a["input"], a["weight"]
        spatial = weight.dim() - 2
        if isinstance(a["padding"], str) or x.dim() != spatial + 2:
            return self._by_autograd(grad, tensors, needed)
        order = self.by_name(names, range(len(tensors)))
        places = [order["input"], order["weight"], order["bias"] if a["bias"] is not None else None]
        sizes = None if a["bias"] is None else [weight.shape[1] * a["groups"] if transposed else weight.shape[0]]
        found = torch.ops.aten.convolution_backward(
            grad,
            x,
            weight,
            sizes,
            *(per_axis(a[name], spatial) for name in ("stride", "padding", "dilation")),
            transposed,
            per_axis(a.get("output_padding", 0), spatial),
            a["groups"],
            [place is not None and needed[place] for place in places],
        )
        by_place = dict(zip(places, found, strict=True))
        return tuple(by_place[i] if needed[i] else None for i in range(len(tensors)))

    def _by_autograd(self, grad: torch.Tensor, tensors: Sequence[torch.Tensor], needed: Sequence[bool]) -> Gradients:
        """By running the call once more."""
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            given = [t.view_as(t) if again else t.detach() for t in tensors]
            for t, need in zip(given, needed, strict=True):
                if need and not t.requires_grad:
                    t.requires_grad_()
            result = self.run(given)
        asked = [t for t, need in zip(given, needed, strict=True) if need]
        found = iter(torch.autograd.grad(result, asked, grad, create_graph=again, allow_unused=True))
        return tuple(next(found) if need else None for need in needed)


def _of_product(grad: torch.Tensor, a: torch.Tensor, b: torch.Tensor, needed: Sequence[bool]) -> Gradients:
    of_a = (grad @ b.mT).sum_to_size(a.shape) if needed[0] else None
    if not needed[1]:
        return of_a, None
    if b.dim() == 2:
        return of_a, a.reshape(-1, a.shape[-1]).t() @ grad.reshape(-1, grad.shape[-1])
    return of_a, (a.mT @ grad).sum_to_size(b.shape)


def per_axis(value: Sides, count: int) -> list[int]:
    """A setting of a convolution as one number per axis."""
    found = [value] if isinstance(value, int) else list(value)
    return found * count if len(found) == 1 else found
