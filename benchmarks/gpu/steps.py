"""Training steps on a device, their gradients, and how far two of them differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Inputs = Mapping[str, torch.Tensor]
Gradients = dict[str, torch.Tensor]


def moved(inputs: Inputs, device: str | torch.device, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """The inputs on a device; those of floating point in a dtype."""
    return {name: tensor.to(device, dtype if tensor.is_floating_point() else None) for name, tensor in inputs.items()}


def first(inputs: Inputs, batch: int) -> dict[str, torch.Tensor]:
    """The first rows of the inputs."""
    return {name: tensor[:batch] for name, tensor in inputs.items()}


def logits(output: Any) -> torch.Tensor:
    """The logits of a model of timm or transformers, captured or not."""
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, Mapping):
        output = output["logits"]
    found = getattr(output, "logits", output)
    return found if isinstance(found, torch.Tensor) else found[0]


def loss(output: Any) -> torch.Tensor:
    """A loss that depends on every output."""
    found = logits(output)
    return found.to(torch.promote_types(found.dtype, torch.float32)).pow(2).mean()


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def shaken(model: nn.Module, std: float = 0.05) -> Any:
    """The model, with its trained parameters moved off their start, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in trained(model).values():
            p.add_((torch.randn(p.shape, generator=generator) * std).to(p))
    return model


def forget(model: nn.Module) -> None:
    """Drop the gradients."""
    for p in model.parameters():
        p.grad = None


def gradients(
    model: Any, inputs: Inputs, autocast: torch.dtype | None = None, scaler: torch.amp.GradScaler | None = None
) -> Gradients:
    """The gradients of a step by name, in float64 on the CPU; a missing one is zero, a scaled one is as it comes.

    Args:
        model: a module, or a compiled one.
        autocast: the dtype of an autocast region around forward; None for no region.
        scaler: scales the loss.
    """
    forget(model)
    device = next(model.parameters()).device.type
    with torch.autocast(device, autocast, enabled=autocast is not None):
        found = loss(model(**inputs))
    (scaler.scale(found) if scaler else found).backward()
    return of(model)


def of(model: nn.Module) -> Gradients:
    """The gradients that a model has now, in float64 on the CPU."""
    return {
        name: torch.zeros(p.shape).double() if p.grad is None else p.grad.detach().cpu().double()
        for name, p in trained(model).items()
    }


def worst(found: Gradients, expected: Gradients) -> float:
    """The largest difference of any element, relative to the largest element of its tensor."""
    pairs = [(found[name], expected[name]) for name in expected]
    return max(((a - b).abs().max() / (b.abs().max() + 1e-12)).item() for a, b in pairs)


def cosine(found: Gradients, expected: Gradients) -> float:
    """The cosine between two gradients, over all tensors."""
    return F.cosine_similarity(_flat(found, expected), _flat(expected, expected), 0).item()


def _flat(gradients: Gradients, names: Gradients) -> torch.Tensor:
    return torch.cat([gradients[name].flatten() for name in names])


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference of two outputs, relative to the largest value."""
    a, b = a.detach().float().cpu(), b.detach().float().cpu()
    return ((a - b).abs().max() / (b.abs().max() + 1e-12)).item()


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """TF32 in matrix products and convolutions of a GPU."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextmanager
def deterministic() -> Iterator[None]:
    """The same kernels in the same order: two equal steps are bit-equal on a GPU too, where it has such kernels."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before
        torch.use_deterministic_algorithms(False)
