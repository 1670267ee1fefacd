"""Prefix tuning: learned keys and values inside an attention, parallel to it, or parallel to another part."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from utcompile.errors import UtcError
from utcompile.tuners.base import Tuner, TunerConfig, register_tuner
from utcompile.tuners.sites import TokensSite, ValueSite

Shape = tuple[int, ...]


class PrefixConfig(TunerConfig):
    """`{kind: prefix, length: 10, scale: none}`."""

    kind: Literal["prefix"] = "prefix"
    length: int = Field(10, ge=1, description="number of learned key and value tokens")
    heads: int = Field(
        1, ge=1, description="in parallel to a value without heads: the number of heads, a divisor of the channels"
    )
    scale: Literal["none", "scalar", "channel"] = Field(
        "none", description="in parallel: a learned factor on the result; none, scalar or channel"
    )
    init: Literal["zero", "xavier", "normal"] = Field(
        "zero",
        description="of the values; zero: a parallel prefix is the identity at the start; xavier; normal: N(0, 0.02)",
    )


@register_tuner("prefix")
class Prefix(Tuner):
    """Prefix tuning: learned keys `K_p` and values `V_p`.

    Computes:
        `tokens: [k, v]`, inside an attention, exact: `Attn(Q, [K_p; K], [V_p; V])`, which is
        `(1-λ)·Attn(Q, K, V) + λ·Attn(Q, K_p, V_p)` with λ the share of the learned keys in the softmax. Heads that
        share keys share the prefix.

        `parallel: r -> o`, from the queries of an attention to its result: U-Tuning's form, which adds
        `T = s·Attn(Q, K_p, V_p)`. A learned scale s takes the place of λ.

        `parallel: x -> y` elsewhere, as parallel to an ffn or a block, where there is no query projection: the same
        with Q = x, `T(x) = s · softmax(x·K_pᵀ / √(C/heads))·V_p`.

    Shapes:
        Tokens: the keys are `(…, heads, S, d)` or `(B·heads, S, d)`; `K_p` is `(heads, length, d)`, `V_p`
        `(heads, length, d_v)`. Parallel to an attention: `(…, heads, N, d)` to the same. Parallel to another part:
        `(B, …, C)` or `(B, C, …)` to the same, `K_p` and `V_p` `(length, C)`; x and y must have one shape.

    Init:
        Keys are N(0, 0.02). Values are zero, which makes a parallel prefix the identity at the start; or Xavier-uniform
        (`xavier`), or N(0, 0.02) (`normal`). A prefix of tokens is never the identity.

    Parameters:
        `length·(C_k + C_v)`, where C counts the channels of all heads; and 1 (`scalar`) or `C` (`channel`). ViT-B/16,
        length 10: 15,360 per site.

    Folds:
        As tokens, constant: keys and values are computed once. In parallel, kept, because a softmax of the input
        remains.

    Source:
        Prefix tuning, arXiv:2101.00190; U-Tuning, arXiv:2303.00690, Eq. 8.
    """

    config_class = PrefixConfig
    forms = ("tokens", "parallel")

    def __init__(
        self,
        config: PrefixConfig,
        keys: Shape,
        values: Shape,
        *,
        repeats: int = 0,
        axis: int = -1,
        scale: Shape = (),
    ) -> None:
        super().__init__()
        self.length, self.heads, self.axis = config.length, config.heads, axis
        self.repeats = repeats  # for tokens; 0 in parallel
        self.keys = nn.Parameter(torch.empty(keys))
        self.values = nn.Parameter(torch.zeros(values))
        nn.init.normal_(self.keys, std=0.02)
        if config.init == "xavier":
            nn.init.xavier_uniform_(self.values)
        elif config.init == "normal":
            nn.init.normal_(self.values, std=0.02)
        shape = {"none": None, "scalar": (), "channel": scale}[config.scale]
        self.scale = None if shape is None else nn.Parameter(torch.ones(shape))
        self.identity_at_start = config.init == "zero" and not repeats

    @classmethod
    def build(cls, config: PrefixConfig, site: ValueSite | TokensSite) -> Prefix:
        """Take heads and channels from the site; in parallel, source and target must have one shape."""
        if isinstance(site, TokensSite):
            return cls._tokens(config, site)
        source, target = site.source, site.target
        read = site.captures.get(target.name)
        if read is not None and read.name == "sdpa" and source.value.shape[:-1] == target.value.shape[:-1]:
            return cls._parallel_to_attention(config, site)
        if source.value.shape != target.value.shape or source.channel_axis != target.channel_axis:
            raise UtcError(
                f"a prefix cannot bring '{source.name}' {source.value} to '{target.name}' {target.value}",
                why="attention to learned tokens keeps the shape of its queries",
                fix="choose captures of equal shape, or an adapter",
            )
        if source.channels % config.heads:
            raise UtcError(
                f"heads: {config.heads} does not divide the {source.channels} channels of '{source.name}'",
                fix="set heads to a divisor of the channels",
            )
        assert source.channel_axis is not None
        shape = (config.length, source.channels)
        return cls(config, shape, shape, axis=source.channel_axis, scale=(source.channels,))

    @classmethod
    def _tokens(cls, config: PrefixConfig, site: TokensSite) -> Prefix:
        if config.scale != "none" or config.heads != 1:
            field = "scale" if config.scale != "none" else "heads"
            raise UtcError(f"a prefix of tokens has no {field}", fix=f"leave out `{field}:`, or use `parallel:`")
        own = site.heads // site.repeats
        keys, values = ((own, config.length, port.channels) for port in (site.source, site.target))
        return cls(config, keys, values, repeats=site.repeats)

    @classmethod
    def _parallel_to_attention(cls, config: PrefixConfig, site: ValueSite) -> Prefix:
        sizes = [(port.value.shape[-3] if port.value.rank > 3 else 1) for port in (site.source, site.target)]
        widths = [port.value.shape[-1] for port in (site.source, site.target)]
        if not all(isinstance(n, int) for n in (*sizes, *widths)) or config.heads != 1:
            why = "its heads are those of the attention" if config.heads != 1 else "heads or channels vary in size"
            raise UtcError(f"a prefix does not fit in parallel to '{site.target.name}' {site.target.value}", why=why)
        over_channels = site.source.channel_axis == site.source.value.rank - 2
        if over_channels or site.source.windows:
            raise UtcError(
                f"a prefix does not fit in parallel to '{site.target.name}' {site.target.value}",
                why="the attention is over channels (cross-covariance attention), not over tokens"
                if over_channels
                else "it attends within windows, whose axis is between the heads and the tokens",
                fix="exclude the site in `where:`, or use an adapter",
            )
        keys, values = ((h, config.length, d) for h, d in zip(sizes, widths, strict=True))
        return cls(config, keys, values, scale=(sizes[1], 1, widths[1]))  # type: ignore[arg-type]

    def forward(
        self, x: torch.Tensor, v: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """In parallel, x to its shape; for tokens, keys and values to `K_p` and `V_p` for every sample."""
        if v is not None:
            return self._for_all(self.keys, x), self._for_all(self.values, v)
        if self.keys.dim() == 3:
            y = _attend(x, self.keys, self.values)
            return y if self.scale is None else y * self.scale
        tokens = x.movedim(self.axis, -1)
        split = tokens.flatten(1, -2) if tokens.dim() > 2 else tokens.unsqueeze(1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for t in (split, self.keys, self.values))
        y = _attend(q, k, v).transpose(-2, -3).flatten(-2).reshape(tokens.shape)
        if self.scale is not None:
            y = y * self.scale
        return y.movedim(-1, self.axis)

    def _for_all(self, learned: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """`(heads, length, d)` -> `(…, heads, length, d)`, or `(B·heads, length, d)`, as the keys have it."""
        if self.repeats > 1:
            learned = learned.repeat_interleave(self.repeats, 0)
        if like.dim() == 3:
            return learned.repeat(like.shape[0] // learned.shape[0], 1, 1)
        return learned.expand(*like.shape[:-3], *learned.shape)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1) @ v
