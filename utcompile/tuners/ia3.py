"""IA3: one learned factor per channel."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from utcompile.errors import UtcError
from utcompile.tuners.base import Affine, TunerConfig, register_tuner
from utcompile.tuners.outputs import inputs_of
from utcompile.tuners.scaling import Scaling
from utcompile.tuners.sites import ValueSite, WeightSite
from utcompile.tuners.slices import Slices


class Ia3Config(TunerConfig):
    """`{kind: ia3}`."""

    kind: Literal["ia3"] = "ia3"
    slices: Slices = None
    inputs: bool = Field(False, description="scale the input channels of a weight instead of its output channels")


@register_tuner("ia3")
class Ia3(Scaling):
    """One learned factor per channel: infused adapter by inhibiting and amplifying inner activations.

    Computes:
        `v' = l ⊙ v`. `sequential: v` scales the channels of a value. `weight: h` scales the rows of the weight, and the
        bias, of the operation that makes h; with `slices: [k, v]` some rows of a packed projection. The operation is a
        linear, a convolution, a norm, an embedding, a matmul or an einsum.

        With `inputs: true`, `weight: h` scales what the weight of a linear, convolution or matmul reads: `W' = W ⊙ l`,
        l per input channel. On the second linear of an ffn this is the paper's factor of the hidden layer. The paper
        scales keys, values and that hidden layer.

    Shapes:
        v is `(B, …, C)` or `(B, C, …)`, and so is the result; l is `(C,)`.

    Init:
        l is one; the identity at the start.

    Parameters:
        `C`.

    Folds:
        Absorbed; in the sequential form into the layer that makes v, or into the layers that read v.

    Source:
        IA3, arXiv:2205.05638, §3.3.
    """

    config_class = Ia3Config

    of_inputs: bool = False

    @classmethod
    def build(cls, config: Ia3Config, site: ValueSite | WeightSite) -> Ia3:
        """One factor per channel of the value, or per output (or input) channel of the weight."""
        if not config.inputs:
            return cls.at(site, shift=False, slices=config.slices)
        if config.slices or not isinstance(site, WeightSite):
            what = "`slices:`" if config.slices else f"`{site.form}:`"
            raise UtcError(f"`inputs: true` cannot be combined with {what}", fix="use `weight: h` without slices")
        cls.check_weight(site)
        found = inputs_of(site.operation, site.weight_shape)
        tuner = cls(found.count, shift=False, outputs=found)
        tuner.of_inputs = True
        return tuner

    def changed(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Affine:
        """(W, b) -> (l ⊙ W, l ⊙ b), or (W ⊙ l, b) with the factors of inputs."""
        if not self.of_inputs:
            return super().changed(weight, bias)
        assert self.outputs is not None
        return self.outputs.scaled(weight, self.gamma.to(weight.dtype)), bias
