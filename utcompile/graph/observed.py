"""Whether a computation may run as an autograd function of ours, or must run as plain operations."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_PLAIN = (torch.Tensor, nn.Parameter)  # known at once; the question about a subclass takes longer


def runs_plainly(*tensors: torch.Tensor | None) -> bool:
    """Whether other code observes the operations of a call, so that it must consist of torch's own.

    These are compilers and exporters, the transforms of `torch.func`, forward-mode derivatives, and tensors that are
    made of other tensors (DTensor). Fake and meta tensors are like real ones.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or any(is_traceable_wrapper_subclass(t) for t in tensors if t is not None and type(t) not in _PLAIN)
    )


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype to which autocast lowers on a type of device; None where it is off, or the device has none (meta)."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None
