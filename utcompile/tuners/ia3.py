"""IA3: one learned factor a channel."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field

from utcompile.errors import UtcError
from utcompile.tuners.base import TunerConfig, register_tuner
from utcompile.tuners.outputs import inputs_of
from utcompile.tuners.scaling import Scaling
from utcompile.tuners.sites import ValueSite, WeightSite
from utcompile.tuners.slices import Slices


class Ia3Config(TunerConfig):
    """`{kind: ia3}`."""

    kind: Literal["ia3"] = "ia3"
    slices: Slices = None
    inputs: bool = Field(False, description="of a weight: scale what it reads, and not what it yields")


@register_tuner("ia3")
class Ia3(Scaling):
    """Infused adapter by inhibiting and amplifying inner activations (arXiv:2205.05638, §3.3): `v' = l ⊙ v`.

    The paper scales keys, values and the hidden layer of the ffn. `sequential: v` scales a value's channels, l `(C,)`;
    `weight: h` scales the rows of the weight, and the bias, of the operation that makes h; with `slices: [k, v]` some
    rows of a packed projection. With `inputs: true`, `weight: h` scales what the weight reads, l `(C_in,)`, which is
    the paper's hidden layer of an ffn seen from its second linear.

    Init: ones, so it is the identity at the start. Parameters: `C`. Folds: absorbed.
    """

    config_class = Ia3Config

    of_inputs: bool = False

    @classmethod
    def build(cls, config: Ia3Config, site: ValueSite | WeightSite) -> Ia3:
        """One factor a channel of the value, or an output (or input) channel of the weight."""
        if not config.inputs:
            return cls(**cls.arguments(site, shift=False, slices=config.slices))
        if config.slices or not isinstance(site, WeightSite):
            what = "`slices:`" if config.slices else f"`{site.form}:`"
            raise UtcError(f"inputs: true does not go with {what}", fix="use `weight: h` without slices")
        arguments = cls.arguments(site, shift=False, slices=None)
        found = inputs_of(site.operation, site.weight_shape)
        tuner = cls(**(arguments | {"channels": found.count, "outputs": found}))
        tuner.of_inputs = True
        return tuner

    def changed(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
        """(W, b) -> (l ⊙ W, l ⊙ b), or (W ⊙ l, b) with the factors of inputs."""
        if not self.of_inputs:
            return super().changed(weight, bias)
        assert self.outputs is not None
        return self.outputs.scaled(weight, self.gamma.to(weight.dtype)), bias
