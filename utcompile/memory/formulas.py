"""What a tuned linear and a tuned convolution compute as one operation, and the gradients of that.

Forward is `OP(x; W + s·BA)`. Backward makes that weight again for the gradient of x, and takes the gradients of A and B
from thin products: with `h = s·Bᵀg`, these are `h ∗ x` and `s·g ∗ A(x)`. The long side of each product is its fast one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from utcompile.memory.strides import Positions, few_positions
from utcompile.tuners.gradients import Tensors

Gradients = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


class Formulas(Protocol):
    """One operation on a weight, with its settings and the scaling s of the update."""

    @property
    def scaling(self) -> float:
        """s."""

    def run(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The operation."""

    def gradients(
        self,
        grad: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        needed: Sequence[bool],
    ) -> Gradients:
        """The gradients of x, A and B; `needed` says of which."""


def changed(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
    """`W + s·BA`."""
    return torch.addmm(weight.flatten(1), b, a.flatten(1), alpha=scaling).view(weight.shape)


@dataclass(frozen=True)
class Linear:
    """A linear over the last axis.

    Attributes:
        scaling: s.
    """

    scaling: float

    def run(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The linear."""
        return F.linear(x, weight, bias)

    def gradients(
        self,
        grad: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        needed: Sequence[bool],
    ) -> Gradients:
        """The gradients of x, A and B."""
        flat, g = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        of_x = (g @ changed(weight, a, b, self.scaling)).view(x.shape) if needed[0] else None
        of_a = (b.t() @ g.t()) * self.scaling @ flat if needed[1] else None
        of_b = ((a @ flat.t()) @ g).t() * self.scaling if needed[2] else None
        return of_x, of_a, of_b


@dataclass(frozen=True)
class Convolution:
    """A convolution of one group.

    Attributes:
        settings: stride, padding and dilation, a number per axis.
        scaling: s.
    """

    settings: tuple[list[int], ...]
    scaling: float

    def run(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The convolution."""
        n = weight.dim() - 2
        result: torch.Tensor = torch.ops.aten.convolution(x, weight, bias, *self.settings, False, [0] * n, 1)
        return result

    def gradients(
        self,
        grad: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        needed: Sequence[bool],
    ) -> Gradients:
        """The gradients of x, A and B, on the positions of x that are read where that is faster."""
        call, positions = self._smaller(x, weight)
        read = x if positions is None else positions.read(x)
        of_x = of_a = of_b = None
        if needed[0]:
            of_x, _, _ = call._backward(grad, read, changed(weight, a, b, self.scaling), [True, False, False])
            of_x = of_x if positions is None else positions.put(of_x, x.shape)
        if needed[1] or needed[2]:
            of_a, of_b = call._of_factors(grad, read, a, b)
        return of_x, of_a, of_b

    def _of_factors(
        self, grad: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradients of A and B."""
        if not grad.is_contiguous() and channels_are_last(grad):
            return self._channels_last(grad, x, a, b)
        g, count = grad.flatten(2), len(grad)
        h = torch.bmm(b.t().expand(count, -1, -1), g) * self.scaling
        if self._reads_each_position_once(a) and x.is_contiguous():
            flat = x.flatten(2)
            hidden = torch.bmm(a.flatten(1).expand(count, -1, -1), flat)
            of_a = torch.bmm(h, flat.mT).sum(0).view(a.shape)
        else:
            hidden = self.run(x, a, None).flatten(2)
            of_a = self._backward(h.view(count, -1, *grad.shape[2:]), x, a, [False, True, False])[1]
        return of_a, torch.bmm(hidden, g.mT).sum(0).t() * self.scaling

    def _channels_last(
        self, grad: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, where a position's channels are next to each other."""
        g = _positions(grad)
        hidden = _positions(self.run(x, a, None))
        h = ((g @ b) * self.scaling).view(len(grad), *grad.shape[2:], -1).movedim(-1, 1)
        return self._backward(h, x, a, [False, True, False])[1], (g.t() @ hidden) * self.scaling

    def _reads_each_position_once(self, weight: torch.Tensor) -> bool:
        stride, padding, _ = self.settings
        return all(n == 1 for n in (*weight.shape[2:], *stride)) and not any(padding)

    def _backward(self, grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, which: list[bool]) -> Tensors:
        n = weight.dim() - 2
        found: Tensors = torch.ops.aten.convolution_backward(
            grad, x, weight, None, *self.settings, False, [0] * n, 1, which
        )
        return found

    def _smaller(self, x: torch.Tensor, weight: torch.Tensor) -> tuple[Convolution, Positions | None]:
        """The call on the positions of x that it reads, where its gradients are faster so."""
        found, n = few_positions(x, weight, *self.settings[:2]), weight.dim() - 2
        return (self, None) if found is None else (Convolution(([1] * n, [0] * n, [1] * n), self.scaling), found)


def channels_are_last(t: torch.Tensor) -> bool:
    """Whether an image's channels are next to each other in memory."""
    return t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last)


def _positions(t: torch.Tensor) -> torch.Tensor:
    """An image as a matrix of a row per position."""
    return t.movedim(1, -1).reshape(-1, t.shape[1])
