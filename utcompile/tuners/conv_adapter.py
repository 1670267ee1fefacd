"""Convolutional adapters: a stated sequence of small layers, on feature maps, or on tokens that were made from one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from torch import nn

from utcompile.errors import UtcError, did_you_mean
from utcompile.graph import Operation
from utcompile.tuners.activations import ACTIVATION_NAMES, check_activation, make_activation
from utcompile.tuners.base import Tuner, TunerConfig, register_tuner
from utcompile.tuners.projection import stride_between
from utcompile.tuners.sites import Port, ValueSite

_KERNEL = re.compile(r"(conv|dwconv|gconv)([1-9])")
_WORDS = ("down", "up", "mix_norm", "mona", "conv3", "dwconv3", "gconv3")


def _check_layer(word: str) -> str:
    found = _KERNEL.fullmatch(word)
    if found and int(found[2]) % 2 == 0:
        raise ValueError(f"{word!r}: the kernel size must be odd, so that the kernel has a middle")
    if found or word in _WORDS:
        return word
    try:
        return check_activation(word)
    except ValueError:
        known = (*_WORDS, *ACTIVATION_NAMES)
        raise ValueError(f"unknown layer {word!r}; {did_you_mean(word, known)}") from None


class ConvAdapterConfig(TunerConfig):
    """`{kind: conv_adapter, dim: 8, layers: [down, gelu, conv3, gelu, up]}`."""

    kind: Literal["conv_adapter"] = "conv_adapter"
    dim: int = Field(8, ge=1, description="width of the bottleneck")
    layers: list[Annotated[str, AfterValidator(_check_layer)]] = Field(
        ["down", "gelu", "conv3", "gelu", "up"],
        min_length=1,
        max_length=16,
        description="the layers in order: down, up, convK, dwconvK, gconvK, mona, mix_norm, or an activation",
    )
    scale: Literal["none", "scalar", "channel"] = Field(
        "none", description="a learned factor on the result: none, scalar, or channel (one number per channel)"
    )
    factor: float = Field(1.0, gt=0, description="a fixed factor on the result")
    init: Literal["zero", "xavier"] = Field(
        "zero", description="zero: the last layer is zero, the identity at the start; xavier: all are Xavier-uniform"
    )
    grid: Annotated[list[int], Field(min_length=2, max_length=2)] | None = Field(
        None, description="[height, width] of the tokens; by default the grid is found in the graph"
    )


@register_tuner("conv_adapter")
class ConvAdapter(Tuner):
    """A sequence of small layers over a feature map, parallel to an operation or after it.

    Computes:
        `parallel: x -> y` adds `T(x)` to y, `sequential: v` replaces v by `v + T(v)`. `layers` lists the layers of T; c
        is the number of channels so far:

        | word | layer |
        |---|---|
        | `down`, `up` | 1×1 convolution from c to `dim`; from c to the channels of y |
        | `conv3` | 3×3 convolution from c to `dim` (any odd kernel size) |
        | `dwconv3` | depthwise 3×3 convolution of c channels |
        | `gconv3` | 3×3 convolution from c to `dim` in `dim` groups, which must divide c |
        | `mona` | `z + W z` with `z = x + (dw3(x) + dw5(x) + dw7(x)) / 3` |
        | `mix_norm` | `γ ⊙ LN(x) + γ_x ⊙ x`, γ = 1e-6 and γ_x = 1 at the start |
        | `gelu`, `relu`, …, `same as a` | an activation |

        Published methods as layers:

        | method | `layers` | place |
        |---|---|---|
        | Convpass | `[down, gelu, conv3, gelu, up]` | `n -> y` at attention and ffn, from the normed value |
        | Conv-Adapter | `[gconv3, relu, up]`, channel scale | `x -> b` at residual blocks |
        | Mona | `[mix_norm, down, mona, gelu, up]` | sequential, after each residual addition |

    Shapes:
        x is `(B, C, H, W)`, `(B, H, W, C)`, or tokens `(B, N, C)`; the result has the shape of y. The grid of tokens is
        that of the nearest feature map before them that has as many positions or up to 16 fewer; `grid: [14, 14]`
        states it. Tokens in front of the patches (a class token) pass as feature maps of one pixel, as in Convpass.
        Where y has fewer positions than x, the first convolution has a stride.

    Init:
        Kaiming-uniform with zero biases, the last layer zero: the identity at the start. `xavier`: Xavier-uniform, the
        last layer too.

    Parameters:
        Those of the listed layers, and 1 (`scalar`) or `C_y` (`channel`).

    Folds:
        Kept.

    Source:
        Convpass, arXiv:2207.07039; Conv-Adapter, arXiv:2208.07463; Mona, arXiv:2311.15010.
    """

    config_class = ConvAdapterConfig
    forms = ("parallel", "sequential")

    def __init__(
        self,
        config: ConvAdapterConfig,
        layers: nn.Sequential,
        source: Port,
        target: Port,
        grid: tuple[int, int] | None,
        residual: bool,
    ) -> None:
        super().__init__()
        assert source.channel_axis is not None and target.channel_axis is not None
        self.layers, self.residual, self.grid = layers, residual, grid
        self.source_axis, self.target_axis = source.channel_axis, target.channel_axis
        shape = {"none": None, "scalar": (), "channel": (target.channels, 1, 1)}[config.scale]
        self.scale = None if shape is None else nn.Parameter(torch.ones(shape))
        self.factor = config.factor
        _initialise(layers, config.init)
        self.identity_at_start = config.init == "zero"

    @classmethod
    def build(cls, config: ConvAdapterConfig, site: ValueSite) -> ConvAdapter:
        """Make the layers for the site's channels, stride and grid."""
        source, target = site.source, site.target
        grid = _grid(config, source, target)
        stride = (1, 1)
        if grid is None:
            height, width = stride_between(source, target)
            stride = (height, width)
        layers, channels = nn.Sequential(), source.channels
        for place, word in enumerate(config.layers):
            made, channels = _layer(word, channels, target.channels, config.dim, stride, site.captures)
            layers.append(made)
            if isinstance(made, nn.Conv2d):
                stride = (1, 1)
            if place == len(config.layers) - 1 and not isinstance(made, nn.Conv2d):
                raise UtcError(
                    f"the last layer is {word!r}",
                    fix="end the layers with up, or with a convolution",
                    code="tuner/does-not-fit",
                )
        if channels != target.channels:
            raise UtcError(
                f"the layers end with {channels} channels, and the target has {target.channels}",
                fix="end the layers with up",
                code="tuner/does-not-fit",
            )
        if stride != (1, 1):
            raise UtcError(
                "no layer of this tuner can have a stride",
                fix="begin the layers with a convolution",
                code="tuner/does-not-fit",
            )
        return cls(config, layers, source, target, grid, residual=site.replaces)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)`, `(B, H, W, C)` or `(B, N, C)` -> the shape of the target."""
        if self.grid is not None:
            y = self._tokens(x)
        else:
            y = self._map(x.movedim(self.source_axis, 1)).movedim(1, self.target_axis)
        return x + y if self.residual else y

    def _map(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        if self.scale is not None:
            y = y * self.scale
        return y if self.factor == 1.0 else y * self.factor

    def _tokens(self, x: torch.Tensor) -> torch.Tensor:
        assert self.grid is not None
        extra = x.shape[1] - prod(self.grid)
        patches = self._map(x[:, extra:].mT.unflatten(-1, self.grid)).flatten(2).mT
        if not extra:
            return patches
        alone = x[:, :extra].flatten(0, 1)[:, :, None, None]  # (B·extra, C, 1, 1)
        return torch.cat((self._map(alone).flatten(1).unflatten(0, (-1, extra)), patches), 1)


class MixNorm(nn.Module):
    """`γ ⊙ LN(x) + γ_x ⊙ x` over the channels of `(B, C, H, W)` (Mona, arXiv:2311.15010, Eq. 5)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))
        self.gamma_x = nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` -> the same."""
        last = x.movedim(1, -1)
        return (self.norm(last) * self.gamma + last * self.gamma_x).movedim(-1, 1)


class Mona(nn.Module):
    """`z + W z` with `z = x + (dw3(x) + dw5(x) + dw7(x)) / 3` (Mona, arXiv:2311.15010, Eq. 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.kernels = nn.ModuleList(
            nn.Conv2d(channels, channels, k, padding=k // 2, groups=channels) for k in (3, 5, 7)
        )
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` -> the same."""
        a, b, c = (kernel(x) for kernel in self.kernels)
        z = x + (a + b + c) / 3
        mixed: torch.Tensor = self.mix(z)
        return z + mixed


def _layer(
    word: str, channels: int, out: int, dim: int, stride: tuple[int, int], captures: Mapping[str, Operation]
) -> tuple[nn.Module, int]:
    """A layer, and the number of channels of its result."""
    found = _KERNEL.fullmatch(word)
    if word in ("down", "up"):
        width = dim if word == "down" else out
        return nn.Conv2d(channels, width, 1, stride=stride), width
    if word == "mix_norm":
        return MixNorm(channels), channels
    if word == "mona":
        return Mona(channels), channels
    if found is None:
        return make_activation(word, captures), channels
    kind, kernel = found[1], int(found[2])
    groups = {"conv": 1, "dwconv": channels, "gconv": dim}[kind]
    width = channels if kind == "dwconv" else dim
    if channels % groups:
        raise UtcError(
            f"{word}: {dim} groups do not divide {channels} channels",
            fix="choose a divisor for dim, or down first",
            code="tuner/option",
        )
    return nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2, groups=groups), width


def _initialise(layers: nn.Sequential, init: str) -> None:
    for module in layers.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5) if init == "zero" else nn.init.xavier_uniform_(
                module.weight
            )
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    last = layers[-1]
    if init == "zero" and isinstance(last, nn.Conv2d):
        nn.init.zeros_(last.weight)


def _grid(config: ConvAdapterConfig, source: Port, target: Port) -> tuple[int, int] | None:
    """The grid of tokens, or None for feature maps.

    Raises:
        UtcError: neither the rule nor the graph gives the grid of the tokens, or the grid does not fit them.
    """
    if source.value.rank == 4 and source.channel_axis in (1, 3):
        return None
    tokens = source.value.shape[1] if source.value.rank == 3 and source.channels_last else None
    if not isinstance(tokens, int) or source.value.shape[:2] != target.value.shape[:2] or not target.channels_last:
        raise UtcError(
            f"a conv_adapter cannot bring '{source.name}' {source.value} to '{target.name}' {target.value}",
            why="a conv_adapter reads feature maps, or tokens of a fixed number, as many as the target has",
            fix="exclude the site in `where:`",
            code="tuner/does-not-fit",
        )
    grid = (config.grid[0], config.grid[1]) if config.grid is not None else source.grid
    if grid is None or not 0 <= tokens - prod(grid) < tokens:
        raise UtcError(
            f"the grid of '{source.name}' {source.value} is {'unknown' if grid is None else f'not {list(grid)}'}",
            why="no feature map with that many positions was made into these tokens" if grid is None else None,
            fix="state the grid: `grid: [height, width]`",
            code="tuner/does-not-fit",
        )
    return grid
