"""Gradients of convolutions of one position with a stride, which read few positions of their input.

On a CPU, oneDNN takes up to four times as long for the gradient of such an input as for the same products over the
positions that are read, whose result is then put into zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

_FEWEST = 500  # positions per sample: below, oneDNN is as fast


@dataclass(frozen=True)
class Positions:
    """Every so many positions per axis.

    Attributes:
        stride: between them, per axis.
    """

    stride: tuple[int, ...]

    def read(self, x: torch.Tensor) -> torch.Tensor:
        """Their numbers, in a new tensor."""
        return x[self._slices].contiguous()

    def like(self, x: torch.Tensor) -> torch.Tensor:
        """A tensor of the shape of `read`, of which no number is read."""
        return x.new_empty(x[self._slices].shape)

    def put(self, values: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Values in their places, and zeros elsewhere."""
        result = values.new_zeros(shape)
        result[self._slices] = values
        return result

    @property
    def _slices(self) -> tuple[slice, ...]:
        return (slice(None), slice(None), *(slice(None, None, step) for step in self.stride))


def few_positions(
    x: torch.Tensor, weight: torch.Tensor, stride: Sequence[int], padding: Sequence[int]
) -> Positions | None:
    """The positions that a convolution reads, where its gradients are faster on these alone.

    Example:
        >>> x, weight = torch.ones(1, 4, 64, 64), torch.ones(2, 4, 1, 1)
        >>> few_positions(x, weight, [2, 2], [0, 0])
        Positions(stride=(2, 2))
        >>> few_positions(x, weight, [1, 1], [0, 0])
    """
    is_one = weight.shape[2:].numel() == 1 and not any(padding) and max(stride) > 1
    if not is_one or x.device.type != "cpu" or not x.is_contiguous():
        return None
    read = prod(-(-size // step) for size, step in zip(x.shape[2:], stride, strict=True))
    return Positions(tuple(stride)) if read >= _FEWEST else None
