"""Norm tuning: the affine part of a norm is trained."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from utcompile.errors import UtcError
from utcompile.tuners.base import Tuner, TunerConfig, register_tuner
from utcompile.tuners.outputs import NORMS
from utcompile.tuners.sites import WeightSite


class NormAffineConfig(TunerConfig):
    """`{kind: norm_affine}`."""

    kind: Literal["norm_affine"] = "norm_affine"


@register_tuner("norm_affine")
class NormAffine(Tuner):
    """Weight and bias `(C,)` of a norm, cloned and trained (arXiv:2003.00152 for BatchNorm, arXiv:2312.11420 for
    LayerNorm); statistics stay frozen.

    Init: copies, so it is the identity at the start. Parameters: `2·C`, or `C` for RMSNorm. Folds: absorbed.
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
        """Copies of the frozen ones."""
        with torch.no_grad():
            for mine, frozen in zip((self.weight, self.bias), parameters, strict=True):
                if mine is not None and frozen is not None:
                    mine.copy_(frozen)

    def changed(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
        """(w, b) -> the trained ones."""
        return self.weight, self.bias
