"""Side networks: one stage for each of several values of a frozen backbone, which no gradient enters."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from torch import nn

from utcompile.tuners.activations import check_activation, make_activation
from utcompile.tuners.adapter import Adapter, AdapterConfig
from utcompile.tuners.base import Tuner, TunerConfig, register_tuner
from utcompile.tuners.projection import Projection
from utcompile.tuners.sites import ChainSite, Port, ValueSite

Join = Literal["replace", "add"]


class BypassConfig(TunerConfig):
    """`{kind: bypass, dim: 10, gate: 0.5}`."""

    kind: Literal["bypass"] = "bypass"
    dim: int = Field(10, ge=1, description="width of the bottlenecks")
    activation: Annotated[str, AfterValidator(check_activation)] = Field(
        "gelu", description="the name of an activation"
    )
    scale: Literal["none", "scalar", "channel"] = Field(
        "none", description="a learned factor of each adapter: none, scalar, or channel (one number per channel)"
    )
    gate: float = Field(0.5, gt=0, lt=1, description="λ, the share of the backbone's value in each state")
    learn_gate: bool = Field(
        False, description="whether λ is learned; then it is a sigmoid whose value at the start is `gate`"
    )
    join: Join = Field("replace", description="what the last state does to the target of the chain: replace or add")


@register_tuner("bypass")
class Bypass(Tuner):
    """One stage of a bypass network next to the frozen backbone, which no gradient enters.

    Computes:
        `x_l^b = λ·T_h(x_l) + (1-λ)·T_v(x_{l-1}^b)`. `chain: y -> y, from: x` over the blocks of a model: `T_h` reads
        the result of a block, detached, and `T_v` the state before; the first state is `x_0`, the input of the first
        block. Both are adapters `Up(act(Down(·)))`, which follow where the backbone changes channels, or the resolution
        by a whole stride. A first stage without `from:` is `T_h(x_l)` alone. λ is `gate`, learned with
        `learn_gate: true`. `join` says what the last state does to the target of the chain.

    Shapes:
        A state has the shape of `x_l`; the last has the shape of the chain's target.

    Init:
        Xavier-uniform, as in the authors' code; never the identity.

    Parameters:
        Two adapters per stage, and 1 where λ is learned. ViT-B/16, dim 10: 2·16,138 per block.

    Folds:
        Kept. One pass of the backbone serves many tasks, and training stores no activation of the backbone for
        backward.

    Source:
        Res-Tuning-Bypass, arXiv:2310.19859, Eq. 9.
    """

    config_class = BypassConfig
    forms = ("chain",)
    identity_at_start = False

    def __init__(
        self, config: BypassConfig, horizontal: Adapter, vertical: Adapter | None, out: Adapter | None, state: Port
    ) -> None:
        super().__init__()
        self.horizontal, self.vertical, self.out = horizontal, vertical, out
        self.gate = _Gate(config.gate, config.learn_gate) if vertical is not None else None
        self.state, self.joins = state, config.join == "add"

    @classmethod
    def build(cls, config: BypassConfig, site: ChainSite) -> Bypass:
        """Two adapters, and one to the chain's target where that has another shape than the last state."""
        state = _state(site.source, site.source.channels)
        horizontal = _adapter(config, site, site.source, state)
        vertical = None if site.previous is None else _adapter(config, site, site.previous, state)
        away = site.is_last and site.target.value.shape != state.value.shape
        out = _adapter(config, site, state, site.target) if away else None
        return cls(config, horizontal, vertical, out, state)

    def forward(self, x: torch.Tensor, previous: torch.Tensor | None = None) -> torch.Tensor:
        """`x_l` and the state before -> the state, in the shape of `x_l`."""
        state: torch.Tensor = self.horizontal(x)
        if self.vertical is not None and self.gate is not None:
            state = self.gate(state, self.vertical(previous))
        return state if self.out is None else self.out(state)


class LadderConfig(TunerConfig):
    """`{kind: ladder, width: 96}`."""

    kind: Literal["ladder"] = "ladder"
    width: int = Field(96, ge=1, description="channels of the side network")
    ratio: int = Field(4, ge=1, description="hidden channels of the side network's layers, as a multiple of its width")
    activation: Annotated[str, AfterValidator(check_activation)] = Field(
        "gelu", description="the name of an activation"
    )
    join: Join = Field("add", description="what the last state does to the target of the chain: replace or add")


@register_tuner("ladder")
class Ladder(Tuner):
    """One rung of ladder side-tuning next to the frozen backbone, which no gradient enters.

    Computes:
        `s_l = g_l(μ_l·D_l(x_l) + (1-μ_l)·s_{l-1})`. `D_l` brings the backbone's value, detached, to the width of the
        side network; `μ_l = sigmoid(α_l)` is learned; `g_l(s) = s + W_2·act(W_1·LN(s))` is the layer of the side
        network. It is a feed-forward layer (the layers of LST are small copies of the backbone's), so it fits
        convolutional backbones too. The last rung brings the state to the channels of the chain's target through a
        linear. `join` says what the last state does to that target.

    Shapes:
        `(B, …, C)` or `(B, C, …)` to `(B, …, width)` or `(B, width, …)`, with the positions of `x_l`.

    Init:
        `μ_l` is 0.5. With `join: add` the last linear is zero: the identity at the start.

    Parameters:
        Per rung: `C·w + w` for D (and for the first rung `C_0·w + w`), 1 for μ, `2w + 2·ratio·w² + ratio·w + w` for g;
        the last has `w·C + C` more.

    Folds:
        Kept. One pass of the backbone serves many tasks, and training stores no activation of the backbone for
        backward.

    Source:
        LST, arXiv:2206.06522, §3.
    """

    config_class = LadderConfig
    forms = ("chain",)

    def __init__(
        self,
        config: LadderConfig,
        down: Projection,
        bring: nn.Module | None,
        layer: nn.Module,
        up: Projection | None,
        state: Port,
    ) -> None:
        super().__init__()
        self.down, self.bring, self.layer, self.up = down, bring, layer, up
        self.gate = _Gate(0.5, True) if bring is not None else None
        self.state, self.joins = state, config.join == "add"
        self.identity_at_start = self.joins

    @classmethod
    def build(cls, config: LadderConfig, site: ChainSite) -> Ladder:
        """The projections to and from the side network's width, and its layer."""
        state = _state(site.source, config.width)
        previous = site.previous
        bring: nn.Module | None = None
        if previous is not None:
            same = previous.value.shape == state.value.shape
            bring = nn.Identity() if same else Projection(previous, state)
        layer = _Layer(config, state, make_activation(config.activation, site.captures))
        up = Projection(state, site.target) if site.is_last else None
        if up is not None and config.join == "add":
            nn.init.zeros_(up.linear.weight)
            nn.init.zeros_(up.linear.bias)
        return cls(config, Projection(site.source, state), bring, layer, up, state)

    def forward(self, x: torch.Tensor, previous: torch.Tensor | None = None) -> torch.Tensor:
        """`x_l` and the state before -> the state."""
        state: torch.Tensor = self.down(x)
        if self.bring is not None and self.gate is not None:
            state = self.gate(state, self.bring(previous))
        state = self.layer(state)
        return state if self.up is None else self.up(state)


class _Gate(nn.Module):
    """`λ·a + (1-λ)·b`."""

    def __init__(self, share: float, learned: bool) -> None:
        super().__init__()
        self.share = share
        self.alpha = nn.Parameter(torch.tensor(share).logit()) if learned else None

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        share = self.share if self.alpha is None else torch.sigmoid(self.alpha)
        return share * a + (1 - share) * b


class _Layer(nn.Module):
    """`s + W_2·act(W_1·LN(s))` over the channels of a state."""

    def __init__(self, config: LadderConfig, state: Port, activation: nn.Module) -> None:
        super().__init__()
        assert state.channel_axis is not None
        width, self.axis = config.width, state.channel_axis
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, config.ratio * width)
        self.activation = activation
        self.out = nn.Linear(config.ratio * width, width)

    def forward(self, s: torch.Tensor) -> torch.Tensor:
        y = self.out(self.activation(self.hidden(self.norm(s.movedim(self.axis, -1)))))
        return s + y.movedim(-1, self.axis)


def _state(like: Port, channels: int) -> Port:
    """A state with the positions of a value."""
    shape = tuple(channels if i == like.channel_axis else size for i, size in enumerate(like.value.shape))
    return Port(replace(like.value, shape=shape, storage=-1), like.channel_axis, "state")


def _adapter(config: BypassConfig, site: ChainSite, source: Port, target: Port) -> Adapter:
    fields = {"dim": config.dim, "activation": config.activation, "scale": config.scale, "init": "xavier"}
    inner = AdapterConfig.model_validate(fields)
    return Adapter.build(inner, ValueSite(source=source, target=target, captures=site.captures, replaces=False))
