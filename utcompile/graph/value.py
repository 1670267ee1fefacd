"""What is known of a value of the graph: its sizes at every recorded batch, dtype, device and storage."""

from __future__ import annotations

from dataclasses import dataclass

import torch

Dim = "int | Affine"


@dataclass(frozen=True)
class Affine:
    """A size `scale · B + offset` in the batch size B.

    >>> print(Affine(1, 0), Affine(196, 0), Affine(1, 1))
    B 196*B B+1
    """

    scale: int
    offset: int

    def __str__(self) -> str:
        product = "B" if self.scale == 1 else f"{self.scale}*B"
        return f"{product}{self.offset:+d}" if self.offset else product

    __repr__ = __str__

    def at(self, batch: int) -> int:
        """The size at one batch size."""
        return self.scale * batch + self.offset


def fit_affine(batches: tuple[int, ...], sizes: tuple[int, ...]) -> int | Affine | None:
    """The one `a·B + c` through all the points, an int where they agree, None where there is none.

    >>> fit_affine((2, 3, 5), (4, 4, 4)), fit_affine((2, 3, 5), (8, 12, 20)), fit_affine((2, 3, 5), (4, 9, 25))
    (4, 4*B, None)
    """
    if len(set(sizes)) == 1:
        return sizes[0]
    scale, rest = divmod(sizes[1] - sizes[0], batches[1] - batches[0])
    line = Affine(scale, sizes[0] - scale * batches[0])
    return line if not rest and all(line.at(b) == s for b, s in zip(batches, sizes, strict=True)) else None


@dataclass(frozen=True)
class Value:
    """A tensor of the graph.

    Attributes:
        shape: one int or `Affine` a dimension.
        dtype: its dtype at capture.
        device: its device at capture.
        storage: values of one number share memory (views, in-place results).
    """

    shape: tuple[int | Affine, ...]
    dtype: torch.dtype
    device: torch.device
    storage: int

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def sizes(self, batch: int) -> tuple[int, ...]:
        """The shape at one batch size."""
        return tuple(d.at(batch) if isinstance(d, Affine) else d for d in self.shape)

    def __str__(self) -> str:
        return "[" + ", ".join(map(str, self.shape)) + "]"
