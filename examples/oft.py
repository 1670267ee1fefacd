"""OFT as a custom tuner: import this file, then write `{kind: oft, block: 8}` in a rule."""

from math import prod
from typing import Literal

import torch
from pydantic import Field
from torch import nn

import utcompile as utc
from utcompile.tuners import Outputs, Tuner, TunerConfig, TunerSite, outputs_of


class OftConfig(TunerConfig):
    kind: Literal["oft"] = "oft"
    block: int = Field(8, ge=2, description="the widest block; the largest divisor of the inputs up to it is taken")


@utc.register_tuner("oft")
class Oft(Tuner):
    """Orthogonal finetuning (arXiv:2306.07280, Eq. 4): each neuron w, the weights of one output channel, becomes `R w`.

    R is block-diagonal with blocks `(k, k)`, each orthogonal by Cayley's `R = (I - Q)⁻¹ (I + Q)`, Q skew-symmetric. All
    neurons are turned alike, so the angles between them stay. A convolution's neuron has `in/groups · kernel` weights.

    Init: Q zero, so it is the identity at the start. Parameters: `n/k · k(k-1)/2` for n weights. Folds: absorbed; ONNX
    has no solve, so it exports folded.
    """

    config_class = OftConfig
    forms = ("weight",)

    def __init__(self, outputs: Outputs, blocks: int, width: int) -> None:
        super().__init__()
        self.outputs, self.width = outputs, width
        self.angles = nn.Parameter(torch.zeros(blocks, width * (width - 1) // 2))

    @classmethod
    def build(cls, config: OftConfig, site: TunerSite) -> "Oft":
        assert site.operation is not None
        outputs = outputs_of(site.operation, site.weight_shape)  # a `UtcError` if the output axis is unknown
        n = prod(outputs.shape) // outputs.count
        width = max(k for k in range(1, config.block + 1) if n % k == 0)
        if width == 1:
            raise utc.UtcError(f"neurons of {n} weights have no blocks of 2 to {config.block}", fix="a larger `block:`")
        return cls(outputs, n // width, width)

    def rotation(self, dtype: torch.dtype) -> torch.Tensor:
        one = torch.eye(self.width, dtype=dtype, device=self.angles.device)
        q = one.new_zeros(len(self.angles), *one.shape)
        q[:, *torch.triu_indices(self.width, self.width, 1)] = self.angles.to(dtype)
        return torch.linalg.solve(one - q + q.mT, one + q - q.mT)

    def changed(self, weight: torch.Tensor) -> torch.Tensor:
        first = tuple(range(len(self.outputs.axes)))
        neurons = weight.reshape(self.outputs.shape).movedim(self.outputs.axes, first)
        rotation = self.rotation(torch.promote_types(weight.dtype, torch.float32)).to(weight.dtype)
        turned = rotation @ neurons.reshape(-1, len(self.angles), self.width, 1)
        return turned.reshape(neurons.shape).movedim(first, self.outputs.axes).reshape(weight.shape).contiguous()
