"""DoRA: a low-rank update of a weight's direction, and a learned magnitude for each of its output channels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from utcompile.graph import Operation
from utcompile.tuners.base import register_tuner
from utcompile.tuners.branches import Branch
from utcompile.tuners.lora import Lora, LoraConfig
from utcompile.tuners.outputs import Outputs, outputs_of
from utcompile.tuners.sites import WeightSite


class DoraConfig(LoraConfig):
    """`{kind: dora, r: 8, alpha: 16}`."""

    kind: Literal["dora"] = "dora"  # type: ignore[assignment]


@register_tuner("dora")
class Dora(Lora):
    """Weight-decomposed low-rank adaptation: LoRA of the direction of a weight, and a magnitude per output channel.

    Computes:
        `W' = m · (W + s·B·A) / ‖W + s·B·A‖`. Norm and magnitude are taken per output channel. The norm is a constant in
        backward, as in the paper (§4.3) and in PEFT. The tuner applies where LoRA does (to an einsum where its equation
        names the result), always reparametrised: its branch would need the frozen result a second time. With `slices`,
        the other rows keep their magnitude.

    Shapes:
        A and B as in LoRA, m `(out,)`.

    Init:
        A and B as in LoRA, `m = ‖W‖`; the tuner is the identity at the start.

    Parameters:
        LoRA's, and one per output channel.

    Folds:
        Absorbed: W becomes W'.

    Source:
        DoRA, arXiv:2402.09353, Eq. 5.
    """

    config_class = DoraConfig
    takes_complex = False  # a magnitude is real
    outputs: Outputs
    magnitude: nn.Parameter

    @classmethod
    def branch_of(cls, op: Operation, site: WeightSite) -> tuple[Branch | None, str]:
        """None: the magnitude scales the frozen weight too."""
        return None, "DoRA scales the frozen weight too"

    @classmethod
    def build(cls, config: LoraConfig, site: WeightSite) -> Dora:
        """As LoRA, and an output axis to normalise along."""
        tuner = super().build(config, site)
        assert isinstance(tuner, Dora)
        tuner.outputs = outputs_of(site.operation, site.weight_shape)
        count = len(tuner.lora_B) if tuner.slice_sizes else tuner.outputs.count
        tuner.magnitude = nn.Parameter(torch.ones(count))
        return tuner

    def start(self, *parameters: torch.Tensor | None) -> None:
        """m = ‖W‖."""
        (weight,) = parameters
        assert weight is not None
        with torch.no_grad():
            norms = self.outputs.norms(weight)
            if self.slice_sizes:
                place = self.get_buffer("place")
                tuned = place < len(self.lora_B)
                self.magnitude[place[tuned]] = norms[tuned]
            else:
                self.magnitude.copy_(norms)

    def changed(self, weight: torch.Tensor) -> torch.Tensor:
        """W -> m · (W + s·BA) / ‖W + s·BA‖."""
        moved = weight + self.delta().to(weight.dtype)
        norms = self.outputs.norms(moved).detach().clamp_min(torch.finfo(moved.dtype).tiny)
        if not self.slice_sizes:
            return self.outputs.scaled(moved, (self.magnitude / norms).to(moved.dtype))
        place = self.get_buffer("place")
        tuned = place < len(self.lora_B)
        spread = nn.functional.pad(self.magnitude, (0, 1)).index_select(0, place)
        return self.outputs.scaled(moved, torch.where(tuned, spread / norms, 1.0).to(moved.dtype))
