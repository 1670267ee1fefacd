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
        "identity", description="identity: scale 1 and shift 0; normal: as in the paper, N(1, 0.02) and N(0, 0.02)"
    )
    slices: Slices = None


@register_tuner("ssf")
class Ssf(Scaling):
    """Scaling and shifting of features.

    Computes:
        `v' = γ ⊙ v + β`. `sequential: v` applies it after any operation whose channel axis is known. `weight: h`
        applies it in the parameters of the operation that makes h: `W' = γ ⊙ W` per output channel, `b' = γ ⊙ b + β`,
        on linears, convolutions, transposed convolutions and norms. A linear or convolution without a bias gets one.
        The two forms train alike; `weight` adds no operation on activations. `slices: [k, v]` takes some rows of a
        packed projection, as in LoRA.

    Shapes:
        v is `(B, …, C)` or `(B, C, …)`, and so is the result; γ and β are `(C,)`.

    Init:
        `identity`: γ is one and β is zero; the identity at the start. `normal`: N(1, 0.02) and N(0, 0.02), as in the
        paper.

    Parameters:
        `2·C`.

    Folds:
        Absorbed; in the sequential form into the layer that makes v, or into the layers that read v.

    Source:
        SSF, arXiv:2210.08823, Eq. 3.
    """

    config_class = SsfConfig

    @classmethod
    def build(cls, config: SsfConfig, site: ValueSite | WeightSite) -> Ssf:
        """One γ and β per channel of the value, or per output channel of the weight."""
        tuner = cls.at(site, shift=True, slices=config.slices)
        if config.init == "normal":
            nn.init.normal_(tuner.gamma, 1.0, 0.02)
            assert tuner.beta is not None
            nn.init.normal_(tuner.beta, 0.0, 0.02)
            tuner.identity_at_start = False
        return tuner
