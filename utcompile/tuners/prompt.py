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
        "none", description="in parallel: a learned factor on the result; none, scalar or channel"
    )


@register_tuner("prompt")
class Prompt(Tuner):
    """Visual prompt tuning: learned tokens P of the stream.

    Computes:
        `tokens: [k, v]`, VPT-Deep: `Attn(Q, [K_p; K], [V_p; V])` with `K_p = LN(P)·W_k + b_k` and
        `V_p = LN(P)·W_v + b_v` from the frozen norm and projections, packed or separate. Each layer has its own
        prompts, and their outputs are dropped. This is exact where nothing reads the outputs of the last layer's
        prompts: with a class token, but not with mean pooling. A prompt has no position, so it is refused where another
        operation than layout (a rotary embedding, a norm of keys) is between projection and attention.

        `stream_tokens: x` at the first block, VPT-Shallow: the tokens enter the stream once and live through all
        blocks. They are put behind the class token and in front of the patches (attention does not see their place),
        and the sizes that the graph states grow with them. Every operation on their way is checked. A model that pins
        the number of its tokens (a relative position bias, a mixer, windows), pools them, or reads them by a place that
        is not in front of the learned tokens is refused by name.

        `parallel: x -> y`, parallel to an ffn or a block, where there is no projection: adds `T(x) = s·Attn(x, P, P)`
        (U-Tuning with `K_p = V_p = P`).

    Shapes:
        P is `(length, C)`. In parallel: tokens `(B, …, C)` or feature maps `(B, C, …)` to the same; x and y must have
        one shape.

    Init:
        Xavier-uniform, as in VPT; never the identity.

    Parameters:
        `length·C`, and 1 (`scalar`) or `C` (`channel`). ViT-B/16, length 10: 7,680 per site.

    Folds:
        As tokens, constant: keys and values are computed once. As `stream_tokens` and in parallel, kept, because what
        the tokens become depends on the input.

    Source:
        VPT, arXiv:2203.12119; U-Tuning, arXiv:2303.00690.
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
                raise UtcError(
                    "a prompt of tokens has no scale",
                    fix="leave out `scale:`, or use `parallel:`",
                    code="tuner/does-not-fit",
                )
        elif source.value.shape != target.value.shape or source.channel_axis != target.channel_axis:
            raise UtcError(
                f"a prompt cannot bring '{source.name}' {source.value} to '{target.name}' {target.value}",
                why="attention to learned tokens keeps the shape of its queries",
                fix="choose captures of equal shape, or an adapter",
                code="tuner/does-not-fit",
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
