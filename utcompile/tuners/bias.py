"""BitFit: the bias itself is trained."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from utcompile.errors import UtcError
from utcompile.tuners.base import Tuner, TunerConfig, register_tuner
from utcompile.tuners.scaling import takes_bias
from utcompile.tuners.sites import WeightSite


class BiasConfig(TunerConfig):
    """`{kind: bias}`."""

    kind: Literal["bias"] = "bias"
    add: bool = Field(
        False, description="give an operation without a bias a bias of zeros, instead of refusing the operation"
    )


@register_tuner("bias")
class Bias(Tuner):
    """BitFit: the bias of a linear, convolution, norm or recurrent layer is trained.

    Computes:
        The operation runs with the trained bias b' instead of b. b' is a copy: b stays as it is, so the base can be
        restored and many tasks share it. An operation without a bias is refused: leave it out with
        `where: [h.op.bias != None]`, or write `add: true`.

    Shapes:
        b' is `(C,)`.

    Init:
        A copy of b, or zeros with `add: true`; the identity at the start.

    Parameters:
        `C`.

    Folds:
        Absorbed: b is replaced by b'.

    Source:
        BitFit, arXiv:2106.10199.
    """

    config_class = BiasConfig
    forms = ("weight",)
    roles = ("bias",)

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(shape))

    @classmethod
    def build(cls, config: BiasConfig, site: WeightSite) -> Bias:
        """Take the shape of the bias, or of the bias to add."""
        shape = site.parameters.get("bias")
        if shape is not None:
            return cls(shape)
        op = site.operation
        if not takes_bias(op):
            raise UtcError(f"{op.name} has no bias, and cannot be given one", code="tuner/does-not-fit")
        if not config.add:
            raise UtcError(
                f"this {op.name} has no bias",
                fix="leave such places out with `where: [h.op.bias != None]`, or add a bias with `add: true`",
                code="tuner/does-not-fit",
            )
        return cls((site.target.channels,))

    def start(self, *parameters: torch.Tensor | None) -> None:
        """Copy the frozen bias."""
        if parameters[0] is not None:
            with torch.no_grad():
                self.value.copy_(parameters[0])

    def changed(self, bias: torch.Tensor | None) -> torch.Tensor:
        """b -> the trained bias."""
        return self.value
