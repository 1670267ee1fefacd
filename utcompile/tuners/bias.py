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
    add: bool = Field(False, description="give an operation without a bias one, of zeros, instead of refusing it")


@register_tuner("bias")
class Bias(Tuner):
    """BitFit (arXiv:2106.10199): the bias b `(C,)` of a linear, convolution, norm or recurrent layer is trained.

    The trained one is a copy: the frozen one stays as it is, so the base can be had again and many tasks share it.
    Init: b, so it is the identity at the start. Parameters: `C`. Folds: absorbed, b is replaced.
    """

    config_class = BiasConfig
    forms = ("weight",)
    roles = ("bias",)

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(shape))

    @classmethod
    def build(cls, config: BiasConfig, site: WeightSite) -> Bias:
        """Take the shape of the bias, or of the one to add."""
        shape = site.parameters.get("bias")
        if shape is not None:
            return cls(shape)
        op = site.operation
        if not takes_bias(op):
            raise UtcError(f"{op.name} has no bias, and takes none")
        if not config.add:
            raise UtcError(
                f"this {op.name} has no bias",
                fix="leave such places out with `where: [h.op.bias != None]`, or add one with `add: true`",
            )
        return cls((site.target.channels,))

    def start(self, *parameters: torch.Tensor | None) -> None:
        """A copy of the frozen bias."""
        if parameters[0] is not None:
            with torch.no_grad():
                self.value.copy_(parameters[0])

    def changed(self, bias: torch.Tensor | None) -> torch.Tensor:
        """b -> the trained one."""
        return self.value
