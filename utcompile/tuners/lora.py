"""LoRA on linears and convolutions: `W + (α/r)·B·A`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from utcompile.errors import UtcError
from utcompile.tuners.base import Tuner, TunerConfig, TunerSite, register_tuner

_OPERATIONS = ("linear", "conv1d", "conv2d", "conv3d")


class LoraConfig(TunerConfig):
    """`{kind: lora, r: 8, alpha: 16}`."""

    kind: Literal["lora"] = "lora"
    r: int = Field(8, ge=1, description="rank of the update")
    alpha: float = Field(8, gt=0, description="the update is scaled by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the branch's input, in training")


@register_tuner("lora")
class Lora(Tuner):
    """Low-rank adaptation (arXiv:2106.09685, Eq. 3) of a linear's or convolution's weight: `W' = W + (α/r)·B·A`.

    The weight is read as a matrix `(out, in/groups · kernel)`: A is `(r, in/groups·k…)`, B `(out, r)`. Two forms, equal
    in exact arithmetic: as a *branch*, `y + s·B(A(x))`, where A is a convolution with the operation's own kernel,
    stride, padding and dilation, and B is 1×1; *reparametrised*, `OP(x; W + s·BA)`, for grouped convolutions, where a
    branch does not exist. Init: A Kaiming-uniform, B zero, so it is the identity at the start.
    Parameters: `r·(in/groups·k… + out)`. Folds: absorbed, `W += s·BA`.
    """

    config_class = LoraConfig
    forms = ("weight",)

    def __init__(self, config: LoraConfig, weight_shape: tuple[int, ...], branch: Branch | None) -> None:
        super().__init__()
        out, *rest = weight_shape
        self.weight_shape = tuple(weight_shape)
        columns = 1
        for n in rest:
            columns *= n
        self.scaling = config.alpha / config.r
        self.lora_A = nn.Parameter(torch.empty(config.r, *rest) if branch else torch.empty(config.r, columns))
        self.lora_B = nn.Parameter(torch.zeros(out, config.r))
        nn.init.kaiming_uniform_(self.lora_A.view(config.r, columns), a=5**0.5)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else None
        self.branch = branch

    @classmethod
    def build(cls, config: LoraConfig, site: TunerSite) -> Lora:
        """Read the operation's attributes; groups decide between branch and reparametrised form."""
        op = site.operation
        if op is None or op.name not in _OPERATIONS or not site.weight_shape:
            name = op.name if op else "this value"
            raise UtcError(f"LoRA does not apply to {name}", fix=f"match one of: {', '.join(_OPERATIONS)}")
        grouped = op.attributes.get("groups", 1) != 1
        if grouped and config.dropout:
            raise UtcError(
                "LoRA with dropout does not apply to a grouped convolution",
                why="its update is added to the weight, where there is no input to drop",
                fix="set dropout: 0 for this rule",
            )
        return cls(config, site.weight_shape, None if grouped else Branch(op.name, op.attributes))

    def delta(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The update `(α/r)·B·A` in the shape of the weight, computed in a dtype (its own by default)."""
        a, b = self.lora_A.flatten(1).to(dtype), self.lora_B.to(dtype)
        return (self.scaling * (b @ a)).reshape(self.weight_shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Branch: the operation's input -> what is added to its result. Reparametrised: W -> W'."""
        if self.branch is None:
            return x + self.delta().to(x.dtype)
        if self.dropout is not None:
            x = self.dropout(x)
        return self.branch(x, self.lora_A, self.lora_B, self.scaling)


class Branch:
    """`x -> s·B(A(x))` with the stride, padding and dilation of the tuned operation."""

    def __init__(self, name: str, attributes: Mapping[str, Any]) -> None:
        self.name = name
        self.spatial = 0 if name == "linear" else int(name[4])
        self.stride, self.padding, self.dilation = (
            attributes.get(k, d) for k, d in (("stride", 1), ("padding", 0), ("dilation", 1))
        )
        self.padding_mode = attributes.get("padding_mode", "zeros")

    def __call__(self, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
        """Apply A, then B, to `(B, …, in)` or `(B, in, …)`."""
        if not self.spatial:
            return nn.functional.linear(nn.functional.linear(x, a), b) * scaling
        conv = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[self.spatial - 1]
        padding = self.padding
        if self.padding_mode != "zeros":
            x = nn.functional.pad(x, self._edges(a), mode=self.padding_mode)
            padding = 0
        hidden = conv(x, a, None, self.stride, padding, self.dilation)
        return conv(hidden, b.reshape(*b.shape, *[1] * self.spatial)) * scaling

    def _edges(self, weight: torch.Tensor) -> list[int]:
        """`F.pad`'s order: the last dimension first, before and after."""
        if isinstance(self.padding, str):
            dilation = self.dilation if isinstance(self.dilation, tuple) else (self.dilation,) * self.spatial
            totals = [
                d * (k - 1) if self.padding == "same" else 0 for d, k in zip(dilation, weight.shape[2:], strict=True)
            ]
            return [e for t in reversed(totals) for e in (t // 2, t - t // 2)]
        padding = self.padding if isinstance(self.padding, tuple) else (self.padding,) * self.spatial
        return [e for p in reversed(padding) for e in (p, p)]
