"""Copies that share memory with the original until one of the two is written: torch's lazy clones."""

from __future__ import annotations

import torch
from torch import nn


def lazy_copy(parameter: nn.Parameter) -> nn.Parameter | None:
    """A parameter of the same values, whose memory is copied only when one of both is written.

    Returns:
        None where torch has no such copies: other devices, layouts and classes of tensors.

    Example:
        >>> one = nn.Parameter(torch.ones(2), requires_grad=False)
        >>> two = lazy_copy(one)
        >>> _ = two.data.mul_(2)
        >>> one, two
        (Parameter containing:
        tensor([1., 1.]), Parameter containing:
        tensor([2., 2.]))
    """
    is_plain = type(parameter) is nn.Parameter and parameter.layout == torch.strided
    clone = getattr(torch, "_lazy_clone", None)
    if not is_plain or clone is None or parameter.device.type not in ("cpu", "cuda"):
        return None
    try:
        return nn.Parameter(clone(parameter.detach()), requires_grad=parameter.requires_grad)
    except RuntimeError:  # memory that torch did not allocate itself, as of a mapped file, on some versions
        return None


def share_frozen(module: nn.Module, memo: dict[int, object]) -> None:
    """Let `copy.deepcopy` of a module share what is frozen: its memo gets a lazy copy of each such parameter."""
    for parameter in module.parameters():
        if not parameter.requires_grad and id(parameter) not in memo:
            shared = lazy_copy(parameter)
            if shared is not None:
                memo[id(parameter)] = shared


def read_only(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, for a reader outside of torch, which would otherwise end the sharing."""
    is_shared = getattr(torch._C, "_is_cow_tensor", lambda _: False)
    return tensor.clone() if is_shared(tensor) else tensor
