"""Weights for the zoo: unwritten ones that cost no memory, or random ones in which nothing is hidden."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_LARGE = 1 << 16  # elements; smaller tensors are computed as usual: they may steer the model's Python code
_FILLS = {
    getattr(Tensor, name)
    for name in "normal_ uniform_ exponential_ bernoulli_ fill_ zero_ copy_ mul_ div_ add_ sub_ clamp_ erfinv_".split()
}
_INITS = {name for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")}  # transformers wraps them
_FACTORIES = {torch.zeros, torch.ones, torch.rand, torch.randn, torch.full}


class _Unwritten(TorchFunctionMode):
    """Large floating tensors keep the untouched pages of `torch.empty`, which the system never has to provide."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FILLS or getattr(func, "__name__", "") in _INITS:
            target = args[0] if args else kwargs.get("tensor")
            if isinstance(target, Tensor) and target.is_floating_point() and target.numel() >= _LARGE:
                return target
        if func in _FACTORIES and kwargs.get("out") is None:
            there = {k: v for k, v in kwargs.items() if k != "generator"} | {"device": "meta"}
            wanted = func(*args, **there)
            if wanted.is_floating_point() and wanted.numel() >= _LARGE:
                return torch.empty(wanted.shape, dtype=wanted.dtype, requires_grad=wanted.requires_grad)
        return func(*args, **kwargs)


@contextmanager
def unwritten() -> Iterator[None]:
    """Inside, models are really built, but their large weights are never written: a giant costs no memory and no time.

    Example:
        >>> import torch
        >>> with unwritten():
        ...     layer = torch.nn.Linear(20_000, 20_000)  # 1.6 GB
        >>> tuple(layer.weight.shape)
        (20000, 20000)
    """
    # torch draws these by rejection, from what it has drawn before: the one initialiser that reads what it wrote
    draw = nn.init._no_grad_trunc_normal_

    def truncated(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return tensor if tensor.numel() >= _LARGE else draw(tensor, *args, **kwargs)

    nn.init._no_grad_trunc_normal_ = truncated
    try:
        with _Unwritten():
            yield
    finally:
        nn.init._no_grad_trunc_normal_ = draw


def shake(model: nn.Module, seed: int = 0) -> None:
    """Add noise to every parameter that is constant: a gain of zero or a LayerScale of 1e-6 would hide a difference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and _is_constant(parameter):
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.1 * noise.to(parameter.dtype))


def _is_constant(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and bool((tensor == tensor.flatten()[0]).all())
