"""Operations on a changed weight that is computed again in backward instead of being stored.

`conv(x, W + s·BA)` would save the second weight `W + s·BA` until its gradient is needed. A weight that was marked by
`remember` is not saved: one autograd function runs the operation, saves its other factor, and computes the weight again
in backward. That function saves tensors in the usual way, so that `torch.utils.checkpoint` and `save_on_cpu` around the
model see them. Compiled and exported graphs contain the plain operations, and their planner decides what is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from utcompile.graph import Context, autocast_dtype, runs_plainly
from utcompile.tuners.gradients import FUNCTIONS, Call
from utcompile.tuners.precision import Changed, ChangesWeights, changed_in_own_dtype

RECIPE = "_utcompile_recipe"
_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True)
class WeightRecipe:
    """How a weight was made.

    Attributes:
        tuner: its `changed` computes the weight.
        given: the arguments of `changed`.
        factors: the tuner's parameters at that time.
        versions: versions of these and of the parameters in `given`, to detect a change in place.
        lowered: the dtype of the autocast in which the weight was made.
        cast: the dtype to which the weight was then cast.
    """

    tuner: ChangesWeights
    given: tuple[torch.Tensor | None, ...]
    factors: Mapping[str, torch.Tensor]
    versions: tuple[tuple[torch.Tensor, int], ...]
    lowered: torch.dtype | None
    cast: torch.dtype

    @classmethod
    def of(cls, weight: torch.Tensor, tuner: ChangesWeights, given: tuple[torch.Tensor | None, ...]) -> WeightRecipe:
        factors = dict(tuner.named_parameters())
        read = (*factors.values(), *(t for t in given if isinstance(t, nn.Parameter)))
        versions = tuple((t, t._version) for t in read if not t.is_inference())
        return cls(tuner, given, factors, versions, autocast_dtype(weight.device.type), weight.dtype)

    def again(self, given: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Compute the weight again from the arguments of `changed`, in the autocast state of the first time."""
        if any(t._version != version for t, version in self.versions):
            raise RuntimeError(
                "a parameter of a tuner, or of a layer that it tunes, was modified in place between forward and "
                "backward; call backward() before the optimizer's step"
            )
        device = next((t.device.type for t in given if t is not None), "cpu")
        tuner = _with_parameters(self.tuner, self.factors)
        if autocast_dtype(device) == self.lowered:
            result = changed_in_own_dtype(tuner, *given)
        else:
            with torch.autocast(device, self.lowered, enabled=self.lowered is not None, cache_enabled=False):
                result = changed_in_own_dtype(tuner, *given)
        weight = result[0] if isinstance(result, tuple) else result
        assert weight is not None
        return weight.to(self.cast)


def _with_parameters(tuner: ChangesWeights, factors: Mapping[str, torch.Tensor]) -> ChangesWeights:
    """The tuner with its parameters of the first time; a copy where `functional_call` had substituted others."""
    now = dict(tuner.named_parameters())
    if now.keys() == factors.keys() and all(now[name] is f for name, f in factors.items()):
        return tuner
    assert isinstance(tuner, nn.Module)
    return _copied(tuner, factors)


def _copied(module: _Module, factors: Mapping[str, torch.Tensor], prefix: str = "") -> _Module:
    result = object.__new__(type(module))
    result.__dict__.update(module.__dict__)
    own = {n: factors.get(prefix + n, p) for n, p in module._parameters.items()}
    inner = {n: m and _copied(m, factors, f"{prefix}{n}.") for n, m in module._modules.items()}
    result.__dict__.update(_parameters=own, _modules=inner)
    return result


def remember(result: Changed, tuner: ChangesWeights, given: tuple[torch.Tensor | None, ...]) -> Changed:
    """Mark a weight with how it was made, and return `result`.

    Args:
        result: the result of `tuner.changed(*given)`: a tensor, or a tuple whose first is the weight.
        tuner: the tuner that computes the weight again.
        given: the frozen parameters from which the weight was made.
    """
    weight = result[0] if isinstance(result, tuple) else result
    if isinstance(weight, torch.Tensor) and not runs_plainly(weight) and weight.grad_fn is not None:
        setattr(weight, RECIPE, WeightRecipe.of(weight, tuner, given))
    return result


def recomputed(function: str, *args: object, **kwargs: object) -> torch.Tensor:
    """Call a function of `torch.nn.functional` or `torch`; a weight marked by `remember` is not saved.

    Args:
        function: `linear`, `conv2d`, `conv_transpose1d`, `matmul`, `einsum` …
        args: its arguments; the weight is one of them.
        kwargs: more of them.

    Example:
        >>> x, weight = torch.ones(2, 4), torch.ones(3, 4, requires_grad=True)
        >>> recomputed("linear", x, weight).sum().backward()
        >>> weight.grad[0]
        tensor([2., 2., 2., 2.])
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return FUNCTIONS[function](*args, **kwargs)
    weights = [a for a in args if isinstance(a, torch.Tensor) and hasattr(a, RECIPE)]
    call, tensors = Call.of(function, args, kwargs)
    if not weights or runs_plainly(*tensors):
        return FUNCTIONS[function](*args, **kwargs)
    recipe: WeightRecipe = getattr(weights[0], RECIPE)
    at = next(i for i, t in enumerate(tensors) if t is weights[0])
    lowered = autocast_dtype(weights[0].device.type)
    if lowered is not None:
        # in autocast the operation would cast its arguments and save the casts
        tensors = tuple(cast_as_autocast_does(t, lowered) for t in tensors)
        recipe = WeightRecipe(
            recipe.tuner, recipe.given, recipe.factors, recipe.versions, recipe.lowered, tensors[at].dtype
        )
    result: torch.Tensor = _Recomputed.apply(call, recipe, at, *tensors)
    return result


def cast_as_autocast_does(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor as an operation reads it under autocast, which leaves integers and float64 as they are."""
    return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor


def no_view(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a tensor that is no view: torch refuses writes to a function's result that is a view.

    `linear` on three axes makes a matrix and reshapes it; nothing else sees the matrix.
    """
    return torch.ops.aten._unsafe_view(tensor, tensor.shape) if tensor._is_view() else tensor


class _Recomputed(torch.autograd.Function):
    """A call whose tensor number `at` is computed again in backward.

    It saves the other factor, as torch does for such a call; neither the result nor the bias is saved.
    """

    @staticmethod
    def forward(ctx: Context, call: Call, recipe: WeightRecipe, at: int, *tensors: torch.Tensor) -> torch.Tensor:
        # parameters stay alive in the model; tensors that were computed on the way to the weight are saved
        computed = [t for t in recipe.given if t is not None and not isinstance(t, nn.Parameter)]
        kept = [i for i in range(len(tensors)) if i not in (at, call.bias_at)]
        ctx.save_for_backward(*(tensors[i] for i in kept), *computed)
        ctx.call, ctx.at, ctx.kept, ctx.shapes = call, at, kept, [t.shape for t in tensors]
        ctx.recipe, ctx.own = recipe, [isinstance(t, nn.Parameter) or t is None for t in recipe.given]
        return no_view(call.run(tensors))

    @staticmethod
    def backward(ctx: Context, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = ctx.saved_tensors  # read once: `checkpoint` gives each tensor once
        found, computed = dict(zip(ctx.kept, saved, strict=False)), iter(saved[len(ctx.kept) :])
        given = [t if own else next(computed) for t, own in zip(ctx.recipe.given, ctx.own, strict=True)]
        found[ctx.at] = ctx.recipe.again(given)
        if (bias := ctx.call.bias_at) is not None:
            found[bias] = grad.new_zeros(ctx.shapes[bias])  # no gradient depends on its numbers
        tensors = [found[i] for i in range(len(ctx.shapes))]
        return None, None, None, *ctx.call.gradients(grad, tensors, ctx.needs_input_grad[3:])
