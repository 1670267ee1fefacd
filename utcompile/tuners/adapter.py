"""Adapters: `s · Up(act(Down(x)))`, parallel to an operation or after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field
from torch import nn

from utcompile.errors import UtcError
from utcompile.tuners.activations import check_activation, make_activation
from utcompile.tuners.base import ChannelMap, Tuner, TunerConfig, register_tuner
from utcompile.tuners.bottleneck import Bottleneck
from utcompile.tuners.inner import Inner
from utcompile.tuners.projection import stride_between
from utcompile.tuners.sites import Port, ValueSite

Projection = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
_CONVS: dict[int, Callable[..., nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
Scale = Literal["none", "scalar", "channel", "input"]
Init = Literal["zero", "xavier", "houlsby"]


class AdapterConfig(TunerConfig):
    """`{kind: adapter, dim: 10, activation: gelu, scale: channel}`."""

    kind: Literal["adapter"] = "adapter"
    dim: int = Field(10, ge=1, description="width of the bottleneck")
    activation: Annotated[str, AfterValidator(check_activation)] = Field(
        "gelu", description="the name of an activation, or `same as <capture>`"
    )
    scale: Scale = Field(
        "none",
        description="a learned factor on the result: none, scalar, channel (one number per channel), input (a gate)",
    )
    factor: float = Field(1.0, gt=0, description="a fixed factor on the result")
    bias: bool = Field(True, description="whether Down and Up have biases")
    init: Init = Field(
        "zero",
        description="zero: Up is zero, the identity at the start; xavier: Xavier-uniform; "
        "houlsby: truncated normal, std 0.01, cut at ±2 std",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout rate of the bottleneck, in training")
    free: ClassVar[frozenset[str]] = frozenset(["dim", "factor", "init", "dropout"])

    def result_factor(self) -> float:
        """The fixed factor."""
        return self.factor


@register_tuner("adapter")
class Adapter(Tuner):
    """The bottleneck adapter of U-Tuning, Houlsby and AdaptFormer, on tokens or feature maps.

    Computes:
        `T(x) = s · Up(act(Down(x)))`. `parallel: x -> y` adds `T(x)` to y; `sequential: v` replaces v by `v + T(v)`.

        Where the channels are the last axis, Down and Up are linears; where they are axis 1, 1×1 convolutions. If y has
        fewer positions than x, Down has a stride. If y has its channels on another axis than x (NCHW next to NHWC), the
        result is permuted. The scale s is 1 (`none`), a learned number (`scalar`), a learned number per channel of y
        (`channel`), or the mean over all positions of `sigmoid(Linear(C_x, 1)(x))` (`input`). It is multiplied by
        `factor`, which is not learned (0.1 in AdaptFormer).

    Shapes:
        x is `(B, …, C_x)` or `(B, C_x, …)`; the result has the shape of y. Down is `(d, C_x)`, Up `(C_y, d)`, s `()` or
        `(C_y,)`.

    Init:
        `zero`: Down is Kaiming-uniform, Up and the biases are zero; the tuner is the identity at the start
        (AdaptFormer, SCEdit). `xavier`: both are Xavier-uniform with biases N(0, 1e-6) (the released code of U-Tuning).
        `houlsby`: both are truncated normal (std 0.01, cut at ±2 std) with zero biases; nearly the identity (Houlsby,
        Adapter+).

    Parameters:
        `C_x·d + d + d·C_y + C_y`, and 1 (`scalar`), `C_y` (`channel`) or `C_x + 1` (`input`); `bias: false` removes
        `d + C_y`. ViT-B/16, dim 10, channel scale: 768·10 + 10 + 10·768 + 768 + 768 = 16,906 per site.

    Folds:
        Widened next to an ffn or an inverted residual that has the same input and activation. With
        `activation: identity` the tuner is one linear map and is absorbed where a neighbouring layer can take it, but
        not with a stride or a gate. Otherwise kept.

    Source:
        U-Tuning, arXiv:2303.00690, Eq. 4; Houlsby et al., arXiv:1902.00751; AdaptFormer, arXiv:2205.13535; Adapter+,
        arXiv:2406.06820.
    """

    config_class = AdapterConfig
    forms = ("parallel", "sequential")

    def __init__(
        self,
        config: AdapterConfig,
        source: Port,
        target: Port,
        activation: nn.Module,
        stride: tuple[int, ...],
        residual: bool,
    ) -> None:
        super().__init__()
        spatial = source.value.rank - 2
        self.residual = residual
        self.linear = source.channels_last
        self.source_axis, self.target_axis = source.channel_axis, target.channel_axis
        if self.linear:
            self.down: Projection = nn.Linear(source.channels, config.dim, bias=config.bias)
            self.up: Projection = nn.Linear(config.dim, target.channels, bias=config.bias)
        else:
            conv = _CONVS[spatial]
            self.down = conv(source.channels, config.dim, 1, stride=stride, bias=config.bias)
            self.up = conv(config.dim, target.channels, 1, bias=config.bias)
        self.activation = activation
        self.dropout = nn.Dropout(config.dropout) if config.dropout else None
        self.strides = stride if self.linear and any(s != 1 for s in stride) else ()
        self.factor = config.factor
        self.scale: nn.Parameter | None = None
        self.gate: nn.Linear | None = None
        if config.scale == "scalar":
            self.scale = nn.Parameter(torch.ones(()))
        elif config.scale == "channel":
            self.scale = nn.Parameter(torch.ones(target.channels))
        elif config.scale == "input":
            self.gate = nn.Linear(source.channels, 1)
        self._initialise(config.init)
        self.identity_at_start = config.init == "zero"

    def _initialise(self, init: str) -> None:
        for layer in (self.down, self.up):
            if init == "zero":
                nn.init.zeros_(self.up.weight) if layer is self.up else nn.init.kaiming_uniform_(layer.weight, a=5**0.5)
            elif init == "xavier":
                nn.init.xavier_uniform_(layer.weight)
            else:
                nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=1e-6) if init == "xavier" else nn.init.zeros_(layer.bias)

    @classmethod
    def build(cls, config: AdapterConfig, site: ValueSite) -> Adapter:
        """Choose the linear or convolutional form, the stride and the activation from the site."""
        source, target = site.source, site.target
        _ = source.channels, target.channels  # raises where one is unknown
        if not source.channels_last and (source.channel_axis != 1 or source.value.rank not in (3, 4, 5)):
            raise UtcError(
                f"an adapter cannot read '{source.name}' {source.value}",
                why=f"its channels are axis {source.channel_axis}, neither the last nor axis 1 of 3 to 5 dimensions",
                code="tuner/does-not-fit",
            )
        stride = stride_between(source, target)
        activation = make_activation(config.activation, site.captures)
        return cls(config, source, target, activation, stride, residual=site.replaces)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, …, C_x)` or `(B, C_x, …)` -> the shape of the target."""
        if self.strides:  # channels last: what a strided 1×1 convolution reads
            x = x[(slice(None), *(slice(None, None, s) for s in self.strides))]
        hidden = self.activation(self.down(x))
        y = self._scaled_up(hidden if self.dropout is None else self.dropout(hidden))
        axis = -1 if self.linear else 1
        if self.gate is not None:
            tokens = x if self.linear else x.movedim(1, -1)
            gate = torch.sigmoid(self.gate(tokens)).flatten(1).mean(1)
            y = y * gate.reshape(-1, *[1] * (y.dim() - 1))
        if self.target_axis is not None and self.target_axis != self.source_axis:
            y = y.movedim(axis, self.target_axis)
        return x + y if self.residual else y

    def _scaled_up(self, hidden: torch.Tensor) -> torch.Tensor:
        """`s·Up(h)` with the scale in the weights: a product with the result would keep all of it for backward."""
        if self.scale is None and self.factor == 1.0:
            return self.up(hidden)
        scale = self.factor if self.scale is None else self.scale * self.factor
        bias = None if self.up.bias is None else self.up.bias * scale
        if isinstance(scale, torch.Tensor) and scale.dim():
            scale = scale.reshape(-1, *[1] * (self.up.weight.dim() - 1))
        weight = self.up.weight * scale
        if isinstance(self.up, nn.Linear):
            return nn.functional.linear(hidden, weight, bias)
        return self.up._conv_forward(hidden, weight, bias)

    def inner(self) -> Inner:
        """The width of the bottleneck."""
        biases = ("down.bias", "up.bias") if self.up.bias is not None else ()
        axes = {"down.weight": 0, "up.weight": 1, **dict.fromkeys(biases[:1], 0)}
        return Inner("dim", axes, ("up.weight", *biases[1:]))

    def bottleneck(self) -> Bottleneck:
        """D and U, with the scale in U.

        Raises:
            UtcError: the scale depends on the input.
        """
        parts = self._parts()
        if parts is None:
            raise UtcError(
                "its scale depends on the input",
                fix="use another scale: none, scalar or channel",
                code="tuner/does-not-fit",
            )
        down, down_bias, up, up_bias = parts
        stride = self.strides or getattr(self.down, "stride", ())
        return Bottleneck(down, self.activation, up, down_bias, up_bias, tuple(stride))

    def _parts(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """D `(d, C_x)`, its bias, U `(C_y, d)` with the scale in it, its bias, in float64 on the CPU.

        None where the scale depends on the input.
        """
        if self.gate is not None:
            return None
        down, up = (layer.weight.detach().cpu().double().flatten(1) for layer in (self.down, self.up))
        zeros = (down.new_zeros(down.shape[0]), up.new_zeros(up.shape[0]))
        biases = [
            z if layer.bias is None else layer.bias.detach().cpu().double()
            for layer, z in zip((self.down, self.up), zeros, strict=True)
        ]
        if self.scale is not None:
            scale = self.scale.detach().cpu().double().reshape(-1)
            up, biases[1] = up * scale.reshape(-1, 1), biases[1] * scale
        up, biases[1] = up * self.factor, biases[1] * self.factor
        return down, biases[0], up, biases[1]

    def channel_map(self) -> ChannelMap | None:
        """`s·U D (+ I)` and `s·(U b_D + b_U)`, where there is no activation between, no stride and no gate."""
        parts = self._parts()
        linear = isinstance(self.activation, nn.Identity) and self.source_axis == self.target_axis and not self.strides
        if parts is None or not linear or set(getattr(self.down, "stride", (1,))) != {1}:
            return None
        down, down_bias, up, up_bias = parts
        matrix = up @ down
        if self.residual:
            matrix = matrix + torch.eye(len(matrix), dtype=matrix.dtype)
        assert self.source_axis is not None
        return ChannelMap(self.source_axis, matrix, up @ down_bias + up_bias)
