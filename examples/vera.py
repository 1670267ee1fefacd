"""VeRA as a custom tuner: import this file, then write `{kind: vera, r: 256}` in a rule."""

from math import prod
from typing import Literal

import torch
from pydantic import Field
from torch import nn

import utcompile as utc
from utcompile.tuners import Tuner, TunerConfig, TunerSite


class VeraConfig(TunerConfig):
    kind: Literal["vera"] = "vera"
    r: int = Field(256, ge=1, description="rank of the update")
    d: float = Field(0.1, description="the initial value of the vector d")
    seed: int = Field(0, description="the seed of the frozen matrices, which are not in checkpoints")


class Drawn(nn.Module):
    """A frozen random matrix; one for all sites of a model, wherever they are moved."""

    def __init__(self, shape: tuple[int, int], seed: int) -> None:
        super().__init__()
        matrix = torch.empty(shape, device="cpu")  # one generator for every device: the seed is all that is saved
        nn.init.kaiming_uniform_(matrix, a=5**0.5, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("matrix", matrix, persistent=False)


@utc.register_tuner("vera")
class Vera(Tuner):
    """Vector-based random matrix adaptation (arXiv:2310.11454, Eq. 2): `W' = W + Λ_b B Λ_d A`.

    W is read as a matrix `(rows, rest)`: its first axis, and all others. A `(r, rest)` and B `(rows, r)` are random,
    frozen and shared by all sites of their shape; the vectors d `(r,)` and b `(rows,)` are trained. Init: b zero, so it
    is the identity at the start. Parameters: `rows + r`. Folds: absorbed.
    """

    config_class = VeraConfig
    forms = ("weight",)

    def __init__(self, config: VeraConfig, site: TunerSite) -> None:
        super().__init__()
        rows, rest = site.weight_shape[0], prod(site.weight_shape[1:])
        self.b, self.d = nn.Parameter(torch.zeros(rows)), nn.Parameter(torch.full((config.r,), config.d))
        self.down = site.share(("A", config.r, rest, config.seed), Drawn, (config.r, rest), config.seed)
        self.up = site.share(("B", rows, config.r, config.seed), Drawn, (rows, config.r), config.seed)

    @classmethod
    def build(cls, config: VeraConfig, site: TunerSite) -> "Vera":
        if len(site.weight_shape) < 2:
            raise utc.UtcError("VeRA needs a matrix", fix="exclude the place in `where:`")
        return cls(config, site)

    def changed(self, weight: torch.Tensor) -> torch.Tensor:
        update = (self.b[:, None] * self.up.matrix) @ (self.d[:, None] * self.down.matrix)
        return weight + update.reshape(weight.shape).to(weight.dtype)
