"""A convolution with LoRA as one operation: no thick gradient of a weight, and no second pass over its result.

Forward is `OP(x; W + s·BA)`. Backward makes that weight again for the gradient of x, and takes the gradients of A and B
from thin products: with `h = s·Bᵀg`, these are `h ∗ x` and `s·g ∗ A(x)`. Nothing but x is kept, or what x is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from utcompile.graph import Context, autocast_dtype, function_of, runs_plainly
from utcompile.memory.branch import remade_branch
from utcompile.memory.calls import remade_call
from utcompile.memory.functions import frozen_conv
from utcompile.memory.recipe import Recipe, Remade
from utcompile.memory.strides import Positions, few_positions
from utcompile.tuners import Lora, recomputed
from utcompile.tuners.branches import is_small
from utcompile.tuners.gradients import Sides, Tensors, per_axis
from utcompile.tuners.recompute import no_view

DTYPES = (torch.float32, torch.float64)  # in half precision `W + s·BA` would round the update away


@dataclass(frozen=True)
class TunedCall:
    """A tuned operation without its tensors.

    Attributes:
        name: a convolution of one group.
        settings: stride, padding and dilation.
        recipe: makes the input again; None: it is kept.
    """

    name: str
    settings: tuple[Sides, ...]
    recipe: Recipe | None = None

    def __call__(
        self,
        tuner: Lora,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *given: object,
    ) -> torch.Tensor:
        """The operation's result with the tuned weight.

        Args:
            tuner: LoRA, in either of its forms.
            x, weight, bias: what the operation reads.
            given: what the recipe starts from; its tensors are kept.
        """
        a, b = tuner.lora_A, tuner._up()
        if not self._can_be_one(tuner, x, weight, bias, b):
            return self._apart(tuner, x, weight, bias, given)
        if self.recipe is None and is_small(self._numbers(x, weight)):
            return self._of_torch(x, weight, bias, a, b, tuner.scaling)
        made, kept = (None, [x]) if self.recipe is None else Remade.here(self.recipe, given, x)
        call = _Call(tuple(per_axis(v, weight.dim() - 2) for v in self.settings), tuner.scaling)
        result: torch.Tensor = _Tuned.apply(call, made, x, weight, bias, a, b, *kept)
        return result

    def _can_be_one(
        self, tuner: Lora, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, b: torch.Tensor
    ) -> bool:
        dropped = tuner.dropout is not None and tuner.dropout.p > 0 and tuner.training
        return (
            not dropped
            and tuner.lora_A.requires_grad
            and not weight.requires_grad
            and (bias is None or not bias.requires_grad)
            and x.dtype == weight.dtype == tuner.lora_A.dtype == b.dtype
            and x.dtype in DTYPES
            and x.dim() == weight.dim()
            and autocast_dtype(x.device.type) is None
            and not runs_plainly(x, weight, tuner.lora_A)
        )

    def _numbers(self, x: torch.Tensor, weight: torch.Tensor) -> int:
        """How many numbers the result has."""
        n = weight.dim() - 2
        sides = zip(x.shape[2:], weight.shape[2:], *(per_axis(v, n) for v in self.settings), strict=True)
        return len(x) * len(weight) * prod((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in sides)

    def _of_torch(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """The same as a convolution and its branch, in torch's own operations."""
        conv = function_of(self.name)
        share = conv(conv(x, a, None, *self.settings), b.reshape(*b.shape, *[1] * (weight.dim() - 2)))
        result: torch.Tensor = conv(x, weight, bias, *self.settings).add_(share, alpha=scaling)
        return result

    def _apart(
        self,
        tuner: Lora,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        given: Sequence[object],
    ) -> torch.Tensor:
        """The same as two operations."""
        if tuner.branch is None:
            args = (x, tuner(weight), bias, *self.settings, 1)
            if self.recipe is None:
                return recomputed(self.name, *args)
            return remade_call(self.recipe, self.name, args, {}, *given)
        stride, padding, dilation = self.settings
        y = frozen_conv(x, weight, bias, stride, padding, dilation, 1)
        if self.recipe is None:
            found: torch.Tensor = tuner(x, y)
            return found
        return remade_branch(self.recipe, tuner, x, y, *given)


@dataclass(frozen=True)
class _Call:
    """The operation and its formulas.

    Attributes:
        settings: stride, padding and dilation, a number per axis.
        scaling: s.
    """

    settings: tuple[list[int], ...]
    scaling: float

    def changed(self, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """`W + s·BA`."""
        return torch.addmm(weight.flatten(1), b, a.flatten(1), alpha=self.scaling).view(weight.shape)

    def run(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        n = weight.dim() - 2
        result: torch.Tensor = torch.ops.aten.convolution(x, weight, bias, *self.settings, False, [0] * n, 1)
        return result

    def of_x(self, grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The gradient of x."""
        return self._backward(grad, x, weight, [True, False, False])[0]

    def of_factors(
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

    def smaller(self, x: torch.Tensor, weight: torch.Tensor) -> tuple[_Call, Positions | None]:
        """The call on the positions of x that it reads, where its gradients are faster so."""
        found, n = few_positions(x, weight, *self.settings[:2]), weight.dim() - 2
        return (self, None) if found is None else (_Call(([1] * n, [0] * n, [1] * n), self.scaling), found)


def channels_are_last(t: torch.Tensor) -> bool:
    """Whether an image's channels are next to each other in memory."""
    return t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last)


def _positions(t: torch.Tensor) -> torch.Tensor:
    """An image as a matrix of a row per position."""
    return t.movedim(1, -1).reshape(-1, t.shape[1])


class _Tuned(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        call: _Call,
        made: Remade | None,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        *kept: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(weight, a, b, *kept)
        ctx.call, ctx.made = call, made
        return no_view(call.run(x, call.changed(weight, a, b), bias))

    @staticmethod
    def backward(ctx: Context, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, a, b, *kept = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        x = kept[0] if ctx.made is None else ctx.made.make(kept)
        call, positions = ctx.call.smaller(x, weight)
        read = x if positions is None else positions.read(x)
        of_x = of_a = of_b = None
        if wanted[2]:
            of_x = call.of_x(grad, read, call.changed(weight, a, b))
            of_x = of_x if positions is None else positions.put(of_x, x.shape)
        if wanted[5] or wanted[6]:
            of_a, of_b = call.of_factors(grad, read, a, b)
        return None, None, of_x, None, None, of_a, of_b, *[None] * len(kept)
