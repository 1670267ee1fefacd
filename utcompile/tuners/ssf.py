"""SSF: scale and shift of deep features."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from utcompile.tuners.base import TunerConfig, register_tuner
from utcompile.tuners.scaling import Scaling
from utcompile.tuners.sites import ValueSite, WeightSite
from utcompile.tuners.slices import Slices


class SsfConfig(TunerConfig):
    """`{kind: ssf}`."""

    kind: Literal["ssf"] = "ssf"
    init: Literal["identity", "normal"] = Field(
        "identity", description="scale 1 and shift 0; or drawn as in the paper, N(1, 0.02) and N(0, 0.02)"
    )
    slices: Slices = None


@register_tuner("ssf")
class Ssf(Scaling):
    """Scaling and shifting features (arXiv:2210.08823, Eq. 3): `v' = γ ⊙ v + β`.

    `sequential: v`, after any operation: v `(B, …, C)` or `(B, C, …)` to the same, γ and β `(C,)`. `weight: h`, in the
    parameters of the operation that makes h: `W' = γ ⊙ W` an output channel, `b' = γ ⊙ b + β`; a linear or convolution
    that has no bias gets one; `slices` takes some rows of a packed projection. The two train alike; `weight` adds no
    operation on activations.

    Init: `identity` (the default here), or the paper's draw. Parameters: `2·C`. Folds: absorbed.
    """

    config_class = SsfConfig

    @classmethod
    def build(cls, config: SsfConfig, site: ValueSite | WeightSite) -> Ssf:
        """One γ and β a channel of the value, or output channel of the weight."""
        tuner = cls(**cls.arguments(site, shift=True, slices=config.slices))
        if config.init == "normal":
            nn.init.normal_(tuner.gamma, 1.0, 0.02)
            assert tuner.beta is not None
            nn.init.normal_(tuner.beta, 0.0, 0.02)
            tuner.identity_at_start = False
        return tuner
