"""RepAdapter: a linear adapter with a grouped second projection, made to be absorbed."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from utcompile.errors import UtcError
from utcompile.tuners.base import ChannelMap, Tuner, TunerConfig, register_tuner
from utcompile.tuners.sites import Port, ValueSite


class RepAdapterConfig(TunerConfig):
    """`{kind: rep_adapter, dim: 8, groups: 2}`."""

    kind: Literal["rep_adapter"] = "rep_adapter"
    dim: int = Field(8, ge=1, description="width between the two projections")
    groups: int = Field(2, ge=1, description="groups of the second projection; a divisor of `dim` and of the channels")
    scale: float = Field(1.0, gt=0, description="a fixed factor on the result")


@register_tuner("rep_adapter")
class RepAdapter(Tuner):
    """RepAdapter: a linear adapter whose second projection is grouped, so that it can be absorbed.

    Computes:
        `x' = x + s·(B(A x + a) + b)`, B block-diagonal in `groups` blocks. The paper places the tuner before the first
        projection of attention and of the ffn: `{sequential: n, for: h}`. `parallel: x -> y` adds `s·(B(A x + a) + b)`
        to y.

    Shapes:
        x is `(B, …, C_x)` or `(B, C_x, …)`, the result the same with `C_y` channels. A is `(d, C_x)`, B
        `(C_y, d/groups)`, a `(d,)`, b `(C_y,)`.

    Init:
        A is Xavier-uniform, B and both biases are zero; the tuner is the identity at the start.

    Parameters:
        `C_x·d + d + C_y·d/groups + C_y`.

    Folds:
        Absorbed into a linear or ungrouped convolution before or after it; but not into a following convolution with
        zero padding, whose border would lack the bias.

    Source:
        RepAdapter, arXiv:2302.08106, Eq. 5 to 7.
    """

    config_class = RepAdapterConfig
    forms = ("sequential", "parallel")

    def __init__(self, config: RepAdapterConfig, source: Port, target: Port, residual: bool) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(config.dim, source.channels))
        self.down_bias = nn.Parameter(torch.zeros(config.dim))
        self.up = nn.Parameter(
            torch.zeros(config.groups, target.channels // config.groups, config.dim // config.groups)
        )
        self.up_bias = nn.Parameter(torch.zeros(target.channels))
        nn.init.xavier_uniform_(self.down)
        self.scale, self.residual, self.channels_last = config.scale, residual, source.channels_last
        self.axis = source.value.rank - 1 if source.channels_last else 1

    @classmethod
    def build(cls, config: RepAdapterConfig, site: ValueSite) -> RepAdapter:
        """Check groups and layout."""
        source, target = site.source, site.target
        for count, what in ((config.dim, "dim"), (target.channels, f"the channels of '{target.name}'")):
            if count % config.groups:
                raise UtcError(
                    f"groups: {config.groups} does not divide {what}, {count}",
                    fix="choose another `groups:` or `dim:`",
                    code="tuner/option",
                )
        axes = source.channel_axis, target.channel_axis
        if not (source.channels_last and target.channels_last) and axes != (1, 1):
            raise UtcError(
                f"a rep_adapter cannot read '{source.name}' {source.value} for '{target.name}' {target.value}",
                why=f"their channels are axes {axes[0]} and {axes[1]}; both must be the last, or both axis 1",
                code="tuner/does-not-fit",
            )
        return cls(config, source, target, residual=site.replaces)

    def _blocks(self) -> torch.Tensor:
        """B as a dense matrix `(C_y, d)`."""
        groups, _, width = self.up.shape
        return torch.cat([F.pad(self.up[g], (g * width, (groups - 1 - g) * width)) for g in range(groups)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, …, C_x)` or `(B, C_x, …)` -> the same with C_y channels."""
        v = x if self.channels_last else x.movedim(1, -1)
        t = F.linear(F.linear(v, self.down, self.down_bias), self._blocks(), self.up_bias) * self.scale
        t = t if self.channels_last else t.movedim(-1, 1)
        return x + t if self.residual else t

    def channel_map(self) -> ChannelMap | None:
        """`(I +) s·B A`, `s·(B a + b)`."""
        down, a, b = (p.detach().cpu().double() for p in (self.down, self.down_bias, self.up_bias))
        up = self._blocks().detach().cpu().double()
        matrix = self.scale * (up @ down)
        if self.residual:
            matrix = matrix + torch.eye(len(matrix), dtype=matrix.dtype)
        return ChannelMap(self.axis, matrix, self.scale * (up @ a + b))
