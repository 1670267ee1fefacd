"""Prefix tuning in U-Tuning's parallel form: attention to learned keys and values, added to the operation."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from utcompile.errors import UtcError
from utcompile.tuners.base import Tuner, TunerConfig, TunerSite, register_tuner


class PrefixConfig(TunerConfig):
    """`{kind: prefix, length: 10, scale: none}`."""

    kind: Literal["prefix"] = "prefix"
    length: int = Field(10, ge=1, description="number of learned key and value tokens")
    heads: int = Field(1, ge=1, description="attention heads; must divide the channels")
    scale: Literal["none", "scalar", "channel"] = Field("none", description="a learned factor on the result")
    init: Literal["zero", "xavier"] = Field(
        "zero", description="of the values: zero makes it the identity at the start"
    )


@register_tuner("prefix")
class Prefix(Tuner):
    """`T(x) = s·Attn(x, K_p, V_p)` (U-Tuning, arXiv:2303.00690, Eq. 8): λ of exact prefix tuning becomes the scale.

    Without a query projection, as beside an FFN or a Block, Q = x. `K_p`, `V_p`: `(length, C)`; softmax over the
    `length` learned tokens of `x·K_pᵀ / √(C/heads)`. Shapes: tokens `(B, …, C)`, or feature maps `(B, C, …)`, to the
    same shape. Init: keys N(0, 0.02), values zero, so it is the identity at the start. Parameters: `2·length·C` and the
    scale's. Folds: kept (a softmax of the input stays in between).
    """

    config_class = PrefixConfig
    forms = ("parallel",)

    def __init__(self, config: PrefixConfig, channels: int, axis: int) -> None:
        super().__init__()
        self.heads, self.axis = config.heads, axis
        self.keys = nn.Parameter(torch.empty(config.length, channels))
        self.values = nn.Parameter(torch.zeros(config.length, channels))
        nn.init.normal_(self.keys, std=0.02)
        if config.init == "xavier":
            nn.init.xavier_uniform_(self.values)
        shape = {"none": None, "scalar": (), "channel": (channels,)}[config.scale]
        self.scale = None if shape is None else nn.Parameter(torch.ones(shape))
        self.identity_at_start = config.init == "zero"

    @classmethod
    def build(cls, config: PrefixConfig, site: TunerSite) -> Prefix:
        """Take the channels from the site; source and target must have one shape."""
        source, target = site.source, site.target
        if source.value.shape != target.value.shape or source.channel_axis != target.channel_axis:
            raise UtcError(
                f"a prefix cannot bring '{source.name}' {source.value} to '{target.name}' {target.value}",
                why="attention to learned tokens keeps the shape of its queries",
                fix="choose captures of equal shape, or an adapter",
            )
        if source.channels % config.heads:
            raise UtcError(
                f"heads: {config.heads} does not divide the {source.channels} channels of '{source.name}'",
                fix="choose a divisor",
            )
        assert source.channel_axis is not None
        return cls(config, source.channels, source.channel_axis)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, …, C)` or `(B, C, …)` -> the same shape."""
        tokens = x.movedim(self.axis, -1)
        split = tokens.flatten(1, -2) if tokens.dim() > 2 else tokens.unsqueeze(1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for t in (split, self.keys, self.values))
        y = F.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1) @ v
        y = y.transpose(-2, -3).flatten(-2).reshape(tokens.shape)
        if self.scale is not None:
            y = y * self.scale
        return y.movedim(-1, self.axis)
