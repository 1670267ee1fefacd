"""A call on a tuned weight that keeps neither the weight nor its input, but what both are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from utcompile.graph import Context, autocast_dtype, runs_plainly
from utcompile.memory.recipe import Recipe, Remade
from utcompile.tuners import recomputed
from utcompile.tuners.gradients import Call
from utcompile.tuners.recompute import RECIPE, WeightRecipe, cast_as_autocast_does, no_view


def remade_call(
    recipe: Recipe, function: str, args: tuple[object, ...], kwargs: Mapping[str, object], *given: object
) -> torch.Tensor:
    """`recomputed(function, *args, **kwargs)`, whose first argument is made again for backward.

    Args:
        recipe: makes the first argument of `given`.
        function: of `utcompile.tuners.recomputed`.
        args: its arguments, the input first.
        kwargs: more of them.
        given: what the recipe starts from; its tensors are kept.
    """
    call, tensors = Call.of(function, args, kwargs)
    at = next((i for i, t in enumerate(tensors) if hasattr(t, RECIPE)), None)
    if not at or runs_plainly(*tensors):
        return recomputed(function, *args, **kwargs)
    (made, kept), weight = Remade.here(recipe, given, tensors[0]), getattr(tensors[at], RECIPE)
    if (lowered := autocast_dtype(tensors[0].device.type)) is not None:
        tensors = tuple(cast_as_autocast_does(t, lowered) for t in tensors)
        weight = replace(weight, cast=tensors[at].dtype)
    return _Call.apply(call, made, weight, at, len(tensors), *tensors, *kept)


class _Call(torch.autograd.Function):
    """As that of `tuners/recompute.py`; its first tensor is made again too."""

    @staticmethod
    def forward(
        ctx: Context, call: Call, made: Remade, weight: WeightRecipe, at: int, count: int, *every: torch.Tensor
    ) -> torch.Tensor:
        tensors, given = every[:count], every[count:]
        computed = [t for t in weight.given if t is not None and not isinstance(t, nn.Parameter)]
        ctx.others = [i for i in range(count) if i not in (0, at, call.bias_at)]
        ctx.save_for_backward(*given, *computed, *(tensors[i] for i in ctx.others))
        ctx.call, ctx.made, ctx.weight, ctx.at = call, made, weight, at
        ctx.counts, ctx.like = (count, len(given), len(computed)), (tensors[0].dtype, [t.shape for t in tensors])
        return no_view(call.run(tensors))

    @staticmethod
    def backward(ctx: Context, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = ctx.saved_tensors
        count, given, computed = ctx.counts
        dtype, shapes = ctx.like
        found = dict(zip(ctx.others, saved[given + computed :], strict=True))
        found[0] = ctx.made.make(saved[:given]).to(dtype)
        own = iter(saved[given : given + computed])
        found[ctx.at] = ctx.weight.again(
            [t if t is None or isinstance(t, nn.Parameter) else next(own) for t in ctx.weight.given]
        )
        if (bias := ctx.call.bias_at) is not None:
            found[bias] = grad.new_zeros(shapes[bias])  # no gradient depends on its numbers
        wanted = ctx.needs_input_grad[5 : 5 + count]
        of = ctx.call.gradients(grad, [found[i] for i in range(count)], wanted)
        return None, None, None, None, None, *of, *[None] * given
