"""The example inputs of a capture, kept for every later comparison with the captured model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch

from utcompile.graph.nested import map_tensors, tensors

T = torch.Tensor
_KEPT_BYTES = 64 * 2**20  # a batch of 100 images of 224 pixels; what is larger is drawn again


@dataclass(frozen=True)
class Drawn:
    """Describes one tensor: values of its kind are drawn uniformly between its smallest and its largest one."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    low: float
    high: float

    @classmethod
    def like(cls, tensor: T) -> Self:
        """A description of a tensor."""
        numbers = tensor.detach().abs() if tensor.is_complex() else tensor.detach()
        finite = numbers.double()[numbers.double().isfinite()]
        low, high = (finite.min().item(), finite.max().item()) if finite.numel() else (0.0, 0.0)
        return cls(tuple(tensor.shape), tensor.dtype, low, high)

    def values(self, generator: torch.Generator) -> T:
        """Fresh values."""
        between = torch.rand(self.shape, dtype=torch.float64, generator=generator)
        if self.dtype.is_floating_point or self.dtype.is_complex:
            return (self.low + between * (self.high - self.low)).to(self.dtype)
        return (self.low + between * (self.high - self.low + 1)).floor().clamp(max=self.high).to(self.dtype)


@dataclass(frozen=True)
class Example:
    """Inputs that the captured model is known to take.

    The tensors are copies, so that what a caller does to its own does not reach them. Tensors of more than 64 MiB
    together are not kept: their shapes and ranges are, and values between are drawn from seed 0.

    Attributes:
        kept: the arguments by name.
        drawn: a description of each tensor, in order; empty where the tensors themselves are kept.
        compared: whether later steps compare on it; not after `verify="shapes"`.
        dtype: the dtype of the model's parameters at capture.
        device: their device.
    """

    kept: Mapping[str, object]
    drawn: tuple[Drawn, ...] = ()
    compared: bool = True
    dtype: torch.dtype = torch.float32
    device: torch.device | None = None

    @classmethod
    def of(
        cls, arguments: Mapping[str, object], *, compared: bool, dtype: torch.dtype, device: torch.device | None = None
    ) -> Self:
        """Keep arguments, given by name."""
        found = tensors(arguments)
        is_large = sum(t.numel() * t.element_size() for t in found if t.layout == torch.strided) > _KEPT_BYTES
        is_drawn = is_large and all(t.layout == torch.strided for t in found)
        keep = _placeholder if is_drawn else _copied
        kept = {name: map_tensors(keep, value) for name, value in arguments.items()}
        return cls(kept, tuple(map(Drawn.like, found)) if is_drawn else (), compared, dtype, device)

    def arguments(self, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
        """Fresh arguments for a model that may have been cast or moved since it was captured."""
        generator = torch.Generator().manual_seed(0)
        drawn = iter(self.drawn)

        def fresh(tensor: T) -> T:
            made = next(drawn).values(generator) if self.drawn else _copied(tensor)
            wanted = dtype if made.dtype == self.dtype else made.dtype
            place = device if device != self.device else tensor.device  # a model may read from several devices
            return made.detach().to(place, wanted).requires_grad_(tensor.requires_grad)

        return {name: map_tensors(fresh, value) for name, value in self.kept.items()}

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self  # nothing writes into it


def _copied(tensor: T) -> T:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _placeholder(tensor: T) -> T:
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device, requires_grad=tensor.requires_grad)
