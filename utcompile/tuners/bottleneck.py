"""The bottleneck that a tuner of values computes; with it the tuner widens neighbouring layers when it is folded."""

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
        up: `(C_out, d)`, multiplied by every factor on the result.
        down_bias, up_bias: `(d,)` and `(C_out,)`; None for zeros.
        stride: the stride over the positions that it reads; empty where it reads all positions.
    """

    down: torch.Tensor
    activation: nn.Module
    up: torch.Tensor
    down_bias: torch.Tensor | None = None
    up_bias: torch.Tensor | None = None
    stride: tuple[int, ...] = ()
