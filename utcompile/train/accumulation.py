"""Several batches per step of the optimizer: their gradients together are that of one large batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Accumulation:
    """How much the batches of one step count.

    The gradient of a batch is weighted as it is computed, by what the step is expected to count. Where classes are
    weighted, or pixels are ignored, what it did count is known after its last batch, and the sum is corrected then.

    Attributes:
        samples: of the step.
        expected: what the step would count if all of its batches were like the first.
        found: what its batches have counted so far.
    """

    samples: int
    expected: float = 0.0
    found: float = 0.0

    def share(self, counts: float, samples: int) -> float:
        """The weight of the mean loss of one more batch.

        Args:
            counts: how much the batch counts: its samples, their weights, or the pixels that are not ignored.
            samples: of the batch.
        """
        if not self.expected:
            self.expected = counts / samples * self.samples
        self.found += counts
        return counts / self.expected if self.expected else 0.0

    def correct(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide the gradients by what the step did count."""
        if self.found in (0.0, self.expected):
            return
        with torch.no_grad():
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(self.expected / self.found)
