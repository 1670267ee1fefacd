"""Operations on a changed weight that is computed again for backward instead of being kept.

`conv(x, W + s·BA)` would save the second weight `W + s·BA` until its gradient is wanted. Here autograd saves how it was
made: a weight that `remember` has seen is recomputed when backward asks for it. Compiled and exported graphs hold the
plain operations, and their own planner decides what is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

_FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "linear": F.linear,
    "conv1d": F.conv1d,
    "conv2d": F.conv2d,
    "conv3d": F.conv3d,
    "conv_transpose1d": F.conv_transpose1d,
    "conv_transpose2d": F.conv_transpose2d,
    "conv_transpose3d": F.conv_transpose3d,
    "matmul": torch.matmul,
    "bmm": torch.bmm,
    "einsum": torch.einsum,
}
_RECIPE = "_utcompile_recipe"
_Layout = tuple[torch.Size, tuple[int, ...], Any]


def remember(
    result: Any,
    make: Callable[..., Any],
    parameters: tuple[torch.Tensor | None, ...],
    factors: Iterable[torch.Tensor] = (),
) -> Any:
    """Note on a weight how it was made; gives it back.

    Args:
        result: what `make(*parameters)` gave: a tensor, or several, of which the first is the weight.
        make: computes it again.
        parameters: the frozen parameters it was made of.
        factors: the trained ones; whoever changes them before backward is told so.
    """
    weight = result[0] if isinstance(result, tuple) else result
    if not torch.compiler.is_compiling() and isinstance(weight, torch.Tensor) and weight.grad_fn is not None:
        versions = tuple((f, f._version) for f in factors)
        setattr(weight, _RECIPE, partial(_again, make, parameters, versions))
    return result


def _again(
    make: Callable[..., Any],
    parameters: tuple[torch.Tensor | None, ...],
    versions: tuple[tuple[torch.Tensor, int], ...],
) -> torch.Tensor:
    if any(f._version != version for f, version in versions):
        raise RuntimeError(
            "a tuner's parameter was modified in place between forward and backward; call backward() before the "
            "optimizer's step"
        )
    with torch.no_grad():
        result = make(*parameters)
    weight = result[0] if isinstance(result, tuple) else result
    assert isinstance(weight, torch.Tensor)
    return weight


def recomputed(function: str, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Call a function of `torch.nn.functional` or `torch`; weights that `remember` has seen are not saved for backward.

    Args:
        function: `linear`, `conv2d`, `conv_transpose1d`, `matmul`, `einsum` …
        args: its arguments; the weight is one of them.
        kwargs: more of them.

    Example:
        >>> weight, update = torch.ones(3, 4), torch.zeros(3, 4, requires_grad=True)
        >>> changed = remember(weight + update, lambda w: w + update, (weight,))
        >>> recomputed("linear", torch.ones(2, 4), changed).sum().backward()
        >>> update.grad[0]
        tensor([2., 2., 2., 2.])
    """
    call = _FUNCTIONS[function]
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return call(*args, **kwargs)
    weight = next((a for a in args if isinstance(a, torch.Tensor) and hasattr(a, _RECIPE)), None)
    if weight is None:
        return call(*args, **kwargs)
    make: Callable[[], torch.Tensor] = getattr(weight, _RECIPE)
    if torch.is_autocast_enabled(weight.device.type):
        # autocast's own copy would be saved: make the copy here, where it is known for what it is
        lower = torch.get_autocast_dtype(weight.device.type)
        given = weight
        weight = weight.to(lower)
        args = tuple(weight if a is given else a for a in args)
        make = partial(_cast, make, lower)
    with _unsaved(weight, make):
        return call(*args, **kwargs)


def _cast(make: Callable[[], torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    return make().to(dtype)


def _unsaved(weight: torch.Tensor, make: Callable[[], torch.Tensor]) -> saved_tensors_hooks:
    """Within this context autograd saves no view of a weight, but its place in it."""
    memory = weight.untyped_storage().data_ptr()

    def pack(saved: torch.Tensor) -> torch.Tensor | _Layout:
        if saved.untyped_storage().data_ptr() != memory or saved.dtype != weight_dtype:
            return saved
        return saved.shape, saved.stride(), saved.storage_offset()

    def unpack(packed: torch.Tensor | _Layout) -> torch.Tensor:
        return packed if isinstance(packed, torch.Tensor) else make().as_strided(*packed)

    weight_dtype = weight.dtype
    return saved_tensors_hooks(pack, unpack)
