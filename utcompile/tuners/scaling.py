"""Scale and shift of channels, `γ ⊙ v + β`, of a value or of the weight that makes it; shared by SSF and IA3."""

from __future__ import annotations

from typing import Self

import torch
from torch import nn

from utcompile.errors import UtcError
from utcompile.graph import Operation
from utcompile.tuners.base import Affine, ChannelMap, Tuner
from utcompile.tuners.outputs import Outputs, outputs_of
from utcompile.tuners.precision import in_own_dtype
from utcompile.tuners.sites import ValueSite, WeightSite
from utcompile.tuners.slices import places


class Scaling(Tuner):
    """`v' = γ ⊙ v + β` along the channels of v (`sequential`), or `W' = γ ⊙ W`, `b' = γ ⊙ b + β` (`weight`).

    Args:
        channels: of the value, or output channels of the weight.
        shift: whether there is a β.
        axis: the value's channel axis and rank; None for weights.
        outputs: the weight's output channels; None for values.
        rows: the rows of a config's `slices`, to which γ and β apply; the other rows stay as they are.
    """

    place: torch.Tensor | None
    forms = ("sequential", "weight")
    roles = ("weight", "bias")
    reads_parameters = True

    def __init__(
        self,
        channels: int,
        shift: bool,
        axis: tuple[int, int] | None = None,
        outputs: Outputs | None = None,
        rows: tuple[tuple[int, ...], ...] = (),
    ) -> None:
        super().__init__()
        place = None
        if rows:
            place, channels = places(rows, channels), sum(map(len, rows))
        self.register_buffer("place", place, persistent=False)
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels)) if shift else None
        self.axis, self.outputs = axis, outputs

    @classmethod
    def at(cls, site: ValueSite | WeightSite, shift: bool, slices: tuple[str, ...] | None = None) -> Self:
        """The tuner of a site.

        Raises:
            UtcError: the operation has no weight or cannot add a β, or the config has slices of a value.
        """
        if isinstance(site, ValueSite):
            if slices:
                raise UtcError("`slices:` needs a weight", fix="use `weight:`, or name the part in the pattern")
            port = site.target
            channels = port.channels
            assert port.channel_axis is not None
            return cls(channels, shift, axis=(port.channel_axis, port.value.rank))
        op = site.operation
        cls.check_weight(site)
        outputs = outputs_of(op, site.weight_shape)
        if shift and not takes_bias(op) and site.parameters.get("bias") is None:
            raise UtcError(
                f"{op.name} adds no bias, so its parameters have no place for β", fix="use `sequential:` instead"
            )
        return cls(outputs.count, shift, outputs=outputs, rows=site.rows)

    @staticmethod
    def check_weight(site: WeightSite) -> None:
        """Refuse a site without a weight, or with one whose channels are not those of the result."""
        op = site.operation
        if not site.weight_shape:
            raise UtcError(
                f"{op.name} has no weight to scale", why="it has no affine part", fix="use `sequential:` instead"
            )
        if not site.direct:
            raise UtcError(
                f"the weight of this {op.name} cannot be scaled",
                why="the model computes the weight from a parameter, whose channels are not those of the result",
                fix="use `sequential:` instead; or remove the parametrisation that computes the weight, and capture "
                "again: torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight', leave_parametrized=True), "
                "for pruning torch.nn.utils.prune.remove(layer, 'weight')",
            )

    def changed(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Affine:
        """(W, b) -> (γ ⊙ W, γ ⊙ b + β)."""
        assert self.outputs is not None
        gamma = self._spread(self.gamma, 1.0).to(weight.dtype)
        new = None if bias is None else (gamma * bias.reshape(-1)).reshape(bias.shape)
        if self.beta is not None:
            beta = self._spread(self.beta, 0.0).to(weight.dtype)
            new = beta if new is None else new + beta.reshape(new.shape)
        return self.outputs.scaled(weight, gamma), new

    def _spread(self, own: torch.Tensor, other: float) -> torch.Tensor:
        """One number per output channel: `own` for the channels of slices, `other` for the rest."""
        place = self.place
        return own if place is None else nn.functional.pad(own, (0, 1), value=other).index_select(0, place)

    def forward(self, *values: torch.Tensor | None) -> object:
        """Sequential: v -> γ ⊙ v + β. Weight: the parameters with which the operation runs."""
        if self.axis is None:
            return super().forward(*values)
        (v,) = values
        assert v is not None
        return self._scaled(v)

    @in_own_dtype
    def _scaled(self, v: torch.Tensor) -> torch.Tensor:
        assert self.axis is not None
        axis, rank = self.axis
        shape = [-1 if a == axis else 1 for a in range(rank)]
        scaled = v * self.gamma.reshape(shape)
        return scaled if self.beta is None else scaled + self.beta.reshape(shape)

    def channel_map(self) -> ChannelMap | None:
        """`diag(γ) v + β`."""
        if self.axis is None:
            return None
        gamma = self.gamma.detach().cpu().double()
        shift = torch.zeros_like(gamma) if self.beta is None else self.beta.detach().cpu().double()
        return ChannelMap(self.axis[0], gamma, shift)


def takes_bias(op: Operation) -> bool:
    """Whether an operation adds a bias or could add one; one that the model spells out without a bias could not."""
    if op.attributes.get("spelled_out") and "bias" not in op.parameters:
        return False
    return op.name.startswith(("linear", "conv", "batch_norm", "layer_norm", "group_norm", "instance_norm"))
