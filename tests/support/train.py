"""Training as tests need it: a few steps, or what stands for them."""

from __future__ import annotations

import torch
from torch import nn


def shake(tuned: nn.Module, std: float = 0.02) -> None:
    """Move every trainable parameter off its start, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(std * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
