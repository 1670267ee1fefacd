"""What a tuner of values computes, where it is a bottleneck: so it folds beside layers that are one too."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Bottleneck:
    """`up · activation(down · x + down_bias) + up_bias`, at every position, along the channels.

    Attributes:
        down: `(d, C_in)`.
        activation: a module of one elementwise function, such as `nn.GELU()`; `nn.Identity()` for none.
        up: `(C_out, d)`, with every factor that the result is multiplied by in it.
        down_bias, up_bias: `(d,)` and `(C_out,)`; None for zeros.
        stride: of the positions that it reads; empty where it reads all.
    """

    down: torch.Tensor
    activation: nn.Module
    up: torch.Tensor
    down_bias: torch.Tensor | None = None
    up_bias: torch.Tensor | None = None
    stride: tuple[int, ...] = ()
