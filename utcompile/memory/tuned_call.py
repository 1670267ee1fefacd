"""A linear or convolution with LoRA as one operation: no thick gradient of a weight, no second pass over its result.

Nothing but its input is kept, or what that is made of. `utcompile/memory/formulas.py` has what it computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F

from utcompile.graph import Context, autocast_dtype, function_of, runs_plainly
from utcompile.memory.branch import remade_branch
from utcompile.memory.calls import remade_call
from utcompile.memory.formulas import Convolution, Formulas, Linear, changed
from utcompile.memory.functions import frozen_conv
from utcompile.memory.recipe import Recipe, Remade
from utcompile.tuners import Lora, recomputed
from utcompile.tuners.branches import is_small
from utcompile.tuners.gradients import Sides, per_axis
from utcompile.tuners.recompute import no_view

DTYPES = (torch.float32, torch.float64)  # in half precision `W + s·BA` would round the update away


@dataclass(frozen=True)
class TunedCall:
    """A tuned operation without its tensors.

    Attributes:
        name: `linear`, or a convolution of one group.
        settings: stride, padding and dilation of a convolution.
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
        if self.recipe is None and weight.dim() > 2 and is_small(self._numbers(x, weight)):
            return self._of_torch(x, weight, bias, a, b, tuner.scaling)
        made, kept = (None, [x]) if self.recipe is None else Remade.here(self.recipe, given, x)
        result: torch.Tensor = _Tuned.apply(self._formulas(weight, tuner.scaling), made, x, weight, bias, a, b, *kept)
        return result

    def _formulas(self, weight: torch.Tensor, scaling: float) -> Formulas:
        if weight.dim() == 2:
            return Linear(scaling)
        return Convolution(tuple(per_axis(v, weight.dim() - 2) for v in self.settings), scaling)

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
            and (x.dim() == weight.dim() or weight.dim() == 2 < x.dim())
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
            groups = (1,) if self.settings else ()
            args = (x, tuner(weight), bias, *self.settings, *groups)
            if self.recipe is None:
                return recomputed(self.name, *args)
            return remade_call(self.recipe, self.name, args, {}, *given)
        y = self._frozen(x, weight, bias)
        if self.recipe is None:
            found: torch.Tensor = tuner(x, y)
            return found
        return remade_branch(self.recipe, tuner, x, y, *given)

    def _frozen(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self.name == "linear":
            return F.linear(x, weight, bias)
        stride, padding, dilation = self.settings
        return frozen_conv(x, weight, bias, stride, padding, dilation, 1)


class _Tuned(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        call: Formulas,
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
        return no_view(call.run(x, changed(weight, a, b, call.scaling), bias))

    @staticmethod
    def backward(ctx: Context, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, a, b, *kept = ctx.saved_tensors
        x = kept[0] if ctx.made is None else ctx.made.make(kept)
        wanted = ctx.needs_input_grad
        of_x, of_a, of_b = ctx.call.gradients(grad, x, weight, a, b, (wanted[2], wanted[5], wanted[6]))
        return None, None, of_x, None, None, of_a, of_b, *[None] * len(kept)
