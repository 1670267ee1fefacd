"""IA3: one learned factor a channel."""

from __future__ import annotations

from typing import Literal

from utcompile.tuners.base import TunerConfig, register_tuner
from utcompile.tuners.scaling import Scaling
from utcompile.tuners.sites import ValueSite, WeightSite
from utcompile.tuners.slices import Slices


class Ia3Config(TunerConfig):
    """`{kind: ia3}`."""

    kind: Literal["ia3"] = "ia3"
    slices: Slices = None


@register_tuner("ia3")
class Ia3(Scaling):
    """Infused adapter by inhibiting and amplifying inner activations (arXiv:2205.05638, §3.3): `v' = l ⊙ v`.

    The paper scales keys, values and the hidden layer of the ffn. `sequential: v` scales a value's channels, l `(C,)`;
    `weight: h` scales the rows of the weight, and the bias, of the operation that makes h; with `slices: [k, v]` some
    rows of a packed projection.

    Init: ones, so it is the identity at the start. Parameters: `C`. Folds: absorbed.
    """

    config_class = Ia3Config

    @classmethod
    def build(cls, config: Ia3Config, site: ValueSite | WeightSite) -> Ia3:
        """One factor a channel of the value, or output channel of the weight."""
        return cls(**cls.arguments(site, shift=False, slices=config.slices))
