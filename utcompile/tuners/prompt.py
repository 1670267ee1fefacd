"""Prompt tuning: learned tokens of the stream, which attention sees through its frozen projections."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from utcompile.errors import UtcError
from utcompile.tuners.base import Tuner, TunerConfig, register_tuner
from utcompile.tuners.sites import TunerSite, ValueSite


class PromptConfig(TunerConfig):
    """`{kind: prompt, length: 10}`."""

    kind: Literal["prompt"] = "prompt"
    length: int = Field(10, ge=1, description="number of learned tokens")
    scale: Literal["none", "scalar", "channel"] = Field(
        "none", description="in parallel: a learned factor on the result"
    )


@register_tuner("prompt")
class Prompt(Tuner):
    """Learned tokens P `(length, C)` of the stream, with `K_p = LN(P)·W_k + b_k`, `V_p = LN(P)·W_v + b_v`.

    `tokens: [k, v]`: VPT-Deep (arXiv:2203.12119), where each layer's prompts are its own and what they become is
    dropped: `Attn(Q, [K_p; K], [V_p; V])` with the frozen norm and projections. Exact wherever the outputs of the last
    layer's prompts are not read, as with a class token. Refused where a rotary embedding stands between.

    `stream_tokens: x`, at the first block: VPT-Shallow, whose prompts enter once and live through all blocks.

    `parallel: x -> y`, beside an FFN or a Block, where there is no projection: `T(x) = s·Attn(x, P, P)` (U-Tuning,
    arXiv:2303.00690, with K_p = V_p = P). Shapes: tokens `(B, …, C)` or feature maps `(B, C, …)`, to the same shape.

    Init: Xavier-uniform, as VPT's; never the identity. Parameters: `length·C` and the scale's.
    Folds: as tokens, to constants; else kept.
    """

    config_class = PromptConfig
    forms = ("tokens", "parallel")
    identity_at_start = False
    reads_stream = True

    def __init__(self, config: PromptConfig, channels: int, axis: int) -> None:
        super().__init__()
        self.length, self.axis = config.length, axis
        self.tokens = nn.Parameter(torch.empty(config.length, channels))
        nn.init.xavier_uniform_(self.tokens)
        shape = {"none": None, "scalar": (), "channel": (channels,)}[config.scale]
        self.scale = None if shape is None else nn.Parameter(torch.ones(shape))

    @classmethod
    def build(cls, config: PromptConfig, site: TunerSite) -> Prompt:
        """Take the channels of the stream."""
        source, target = site.source, site.target
        if not isinstance(site, ValueSite):
            if config.scale != "none":
                raise UtcError("a prompt of tokens has no scale of its own", fix="leave out scale, or use parallel")
        elif source.value.shape != target.value.shape or source.channel_axis != target.channel_axis:
            raise UtcError(
                f"a prompt cannot bring '{source.name}' {source.value} to '{target.name}' {target.value}",
                why="attention to learned tokens keeps the shape of its queries",
                fix="choose captures of equal shape, or an adapter",
            )
        channels = source.channels
        assert source.channel_axis is not None
        return cls(config, channels, source.channel_axis)

    def forward(self, x: torch.Tensor | None = None) -> torch.Tensor:
        """For tokens, `()` -> `(1, length, C)`; in parallel `(B, …, C)` or `(B, C, …)` -> the same shape."""
        if x is None:
            return self.tokens.unsqueeze(0)
        queries = x.movedim(self.axis, -1)
        weights = torch.softmax(queries @ self.tokens.mT * queries.shape[-1] ** -0.5, dim=-1)
        y = weights @ self.tokens
        if self.scale is not None:
            y = y * self.scale
        return y.movedim(-1, self.axis)
