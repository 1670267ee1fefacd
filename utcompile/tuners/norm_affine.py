"""Norm tuning: the affine part of a norm is trained."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from utcompile.errors import UtcError
from utcompile.tuners.base import Affine, Tuner, TunerConfig, register_tuner
from utcompile.tuners.outputs import NORMS
from utcompile.tuners.sites import WeightSite


class NormAffineConfig(TunerConfig):
    """`{kind: norm_affine}`."""

    kind: Literal["norm_affine"] = "norm_affine"


@register_tuner("norm_affine")
class NormAffine(Tuner):
    """Norm tuning: weight and bias of a norm are trained.

    Computes:
        The norm runs with trained copies of its weight and bias; running statistics stay frozen. A norm that the model
        spells out in single operations is tuned too. The frozen parameters stay, so the base can be restored.

    Shapes:
        Weight and bias are `(C,)`, or of the shape that the norm has.

    Init:
        Copies; the identity at the start.

    Parameters:
        `2·C`, or `C` for a norm without a bias, such as RMSNorm.

    Folds:
        Absorbed: weight and bias are replaced.

    Source:
        arXiv:2003.00152 for BatchNorm, arXiv:2312.11420 for LayerNorm.
    """

    config_class = NormAffineConfig
    forms = ("weight",)
    roles = ("weight", "bias")

    def __init__(self, weight: tuple[int, ...], bias: tuple[int, ...] | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(weight))
        self.bias = nn.Parameter(torch.zeros(bias)) if bias is not None else None

    @classmethod
    def build(cls, config: NormAffineConfig, site: WeightSite) -> NormAffine:
        """Take the shapes of the norm's parameters."""
        op = site.operation
        if op.name not in NORMS:
            raise UtcError(f"norm_affine does not apply to {op.name}", fix="match a norm: {op: norm}")
        weight = site.parameters.get("weight")
        if weight is None:
            raise UtcError(f"this {op.name} has no affine part", fix="leave it out with `where: [h.op.weight != None]`")
        return cls(weight, site.parameters.get("bias"))

    def start(self, *parameters: torch.Tensor | None) -> None:
        """Copy the frozen parameters."""
        with torch.no_grad():
            for mine, frozen in zip((self.weight, self.bias), parameters, strict=True):
                if mine is not None and frozen is not None:
                    mine.copy_(frozen)

    def changed(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Affine:
        """(w, b) -> the trained weight and bias."""
        return self.weight, self.bias
