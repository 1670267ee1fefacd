"""The calls that are recorded: sizes at which every polynomial shows itself, another dtype and device, the mode.

What differs between recordings as a sample's size, dtype, device or mode does is an expression of it; so what a model
derives from its inputs stays derived, and what it fixes stays fixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, product

import torch

from utcompile.graph import BATCH, Symbol

_BATCHES = (2, 3, 5)


@dataclass(frozen=True)
class Sample:
    """One call.

    Attributes:
        sizes: the size of each symbol.
        dtype: the dtype that floating-point state and inputs are recorded in; None keeps theirs.
        device: where state and inputs are recorded; None keeps theirs.
        training: the model's mode.
        shuffle: where values are real, which order those of floating-point inputs are in; 0 is the example's.
    """

    sizes: Mapping[Symbol, int]
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    training: bool = False
    shuffle: int = 0

    def __str__(self) -> str:
        parts = [f"{s.name}={n}" for s, n in self.sizes.items()]
        parts += [str(self.dtype).removeprefix("torch.")] if self.dtype else []
        parts += [str(self.device)] if self.device else []
        parts += ["other values"] if self.shuffle else []
        return ", ".join([*parts, *(["training"] if self.training else [])]) or "the example"


def plan_samples(
    symbols: Sequence[Symbol], *, follow: bool, chosen: Mapping[Symbol, Sequence[int]] | None = None
) -> list[Sample]:
    """The first sample has the examples' sizes (batch 2); then every corner of two sizes each, and one check.

    Two sizes would be too few: `B**2` is affine at 2 and 3.

    Args:
        follow: also in train mode.
        chosen: three sizes of each symbol where a model runs otherwise at sizes far from the example's.
    """
    sizes = [chosen[s] if chosen else _BATCHES if s == BATCH else _neighbours(s) for s in symbols]
    corners = [dict(zip(symbols, corner, strict=True)) for corner in product(*(s[:2] for s in sizes))]
    check = {symbol: s[2] for symbol, s in zip(symbols, sizes, strict=True)}
    samples = [Sample(c) for c in [*corners, *([check] if symbols else [])]]
    return [*samples, *([replace(samples[0], training=True)] if follow else [])]


def unrecorded(symbols: Sequence[Symbol], example: Mapping[Symbol, int]) -> Sample | None:
    """Small sizes that were not recorded, for a comparison that computes; None where nothing varies.

    Args:
        symbols: the sizes that vary.
        example: the sizes of the example inputs, which are compared anyway.
    """
    recorded = plan_samples(symbols, follow=False)
    sizes: dict[Symbol, int] = {}
    for symbol in symbols:
        known = {s.sizes[symbol] for s in recorded} | {example[symbol]}
        first = 1 if symbol == BATCH else max(1, symbol.example - 2 * symbol.step)
        sizes[symbol] = next(n for n in count(first, symbol.step) if n not in known)
    return Sample(sizes) if symbols else None


def _neighbours(symbol: Symbol) -> tuple[int, int, int]:
    """The example's size and two others, far enough away that a stride cannot hide them."""
    size, step = symbol.example, symbol.step
    if step == 1 and size > 4:  # a length: shorter ones are safe where positions are limited
        return size, size // 2 + 1, size // 2 + 1 + (size - size // 2) // 2
    far = max(1, size // (2 * step)) * step
    return size, size + far, size + 2 * far + step


def other_device(home: torch.device) -> torch.device:
    """A device of another type than the model's, which this machine need not have: its fakes weigh nothing.

    >>> other_device(torch.device("cpu")), other_device(torch.device("cuda", 0))
    (device(type='cuda', index=0), device(type='cpu'))
    """
    return torch.device("cpu") if home.type == "cuda" else torch.device("cuda", 0)


def with_other_dtype_and_device(
    samples: list[Sample], dtype: torch.dtype | None, device: torch.device | None
) -> list[Sample]:
    """The last sizes are recorded in another dtype and on another device.

    Args:
        dtype: the other dtype; None keeps the model's.
        device: the other device; None keeps the model's.
    """
    at = max(i for i, s in enumerate(samples) if not s.training)
    other = replace(samples[at], dtype=dtype, device=device)
    # where only one size is recorded, the other dtype is a second recording
    return [*samples[:at], *([samples[at]] if at == 0 else []), other, *samples[at + 1 :]]


def with_other_values(samples: list[Sample], again: int) -> list[Sample]:
    """Samples for real values: in the model's own dtype, and each again with other values, so that a size that
    depends on values shows itself."""
    own = [replace(s, dtype=None, device=None) for s in samples]
    return [*own, *(replace(s, shuffle=again * i + j) for i, s in enumerate(own, 1) for j in range(again))]
