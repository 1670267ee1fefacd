"""A product that keeps what one factor is made of, instead of that factor."""

from __future__ import annotations

import torch

from utcompile.graph import Context, runs_plainly
from utcompile.memory.recipe import Recipe, Remade


def remade_product(recipe: Recipe, x: torch.Tensor, other: torch.Tensor, *given: object) -> torch.Tensor:
    """`x * other`, with x made again for backward from `given`, whose tensors are kept."""
    if not other.requires_grad or runs_plainly(x, other):
        return x * other
    made, kept = Remade.here(recipe, given, x)
    return _Product.apply(made, x, other, *kept)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, made: Remade, x: torch.Tensor, other: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        needs_other = ctx.needs_input_grad[1]
        ctx.save_for_backward(other if needs_other else None, *given)
        ctx.made, ctx.like = made, ((x.shape, x.dtype), (other.shape, other.dtype))
        return x * other

    @staticmethod
    def backward(ctx: Context, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        other, *given = ctx.saved_tensors
        (shape, dtype), (other_shape, other_dtype) = ctx.like
        _, of_x, of_other = ctx.needs_input_grad[:3]
        return (
            None,
            (grad * other).sum_to_size(shape).to(dtype) if of_x else None,
            (grad * ctx.made.make(given)).sum_to_size(other_shape).to(other_dtype) if of_other else None,
            *[None] * len(given),
        )
