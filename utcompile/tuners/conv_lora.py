"""LoRA parallel to a grouped convolution, whose weight has no place for an A that reads every channel."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from utcompile.errors import UtcError
from utcompile.graph import function_of
from utcompile.ops import Trait, having
from utcompile.tuners.base import Tuner, TunerConfig, register_tuner
from utcompile.tuners.inner import Inner
from utcompile.tuners.sites import ValueSite

_CONVS = {name: function_of(name) for name in having(Trait.CONV)}


class ConvLoraConfig(TunerConfig):
    """`{kind: conv_lora, r: 8, alpha: 16}`."""

    kind: Literal["conv_lora"] = "conv_lora"
    r: int = Field(8, ge=1, description="rank of the update: channels between A and B, a multiple of the groups")
    alpha: float = Field(8, gt=0, description="the result is multiplied by alpha / r")
    rslora: bool = Field(False, description="multiply by alpha / √r instead of alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout rate of the input, in training")
    free: ClassVar[frozenset[str]] = frozenset(["r", "alpha", "rslora", "dropout"])

    def result_factor(self) -> float:
        """α/r, or α/√r."""
        return self.alpha / (self.r**0.5 if self.rslora else self.r)


@register_tuner("conv_lora")
class ConvLora(Tuner):
    """PEFT's LoRA of a grouped convolution, parallel to the convolution.

    Computes:
        `parallel: x -> h` adds `s·B(A(x))` to h, with `s = α/r`, or `s = α/√r` with `rslora: true`. A is a convolution
        with the kernel, stride and padding of the tuned one over the channels of *all* groups; B is a 1×1 convolution
        in as many groups. `lora` of a grouped convolution has an A inside each group instead, and folds.

    Shapes:
        x is `(B, C_in, …)`, the result has the shape of h. A is `(r, C_in, *kernel)`, B `(C_out, r/groups, 1, …)`.

    Init:
        A is Kaiming-uniform, B is zero; the tuner is the identity at the start.

    Parameters:
        `r·(C_in·kernel + C_out/groups)`.

    Folds:
        Kept: a grouped weight has no place for an A that reads all channels.

    Source:
        The convolution layer of PEFT's LoRA, arXiv:2106.09685.
    """

    config_class = ConvLoraConfig
    forms = ("parallel",)

    def __init__(
        self, config: ConvLoraConfig, a: tuple[int, ...], b: tuple[int, ...], groups: int, settings: dict[str, object]
    ) -> None:
        super().__init__()
        self.rank, self.groups, self.settings = config.r, groups, settings
        self.scaling = config.result_factor()
        self.lora_A, self.lora_B = nn.Parameter(torch.empty(a)), nn.Parameter(torch.zeros(b))
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else None

    @classmethod
    def build(cls, config: ConvLoraConfig, site: ValueSite) -> ConvLora:
        """Take kernel, stride, padding and groups from the convolution that makes the target."""
        op = site.captures.get(site.target.name)
        if op is None or op.name not in _CONVS:
            raise UtcError(
                f"conv_lora does not apply to {op.name if op else 'this value'}",
                why="conv_lora takes kernel, stride and padding from a convolution",
                fix="match a convolution, and insert from its input to its result: {op: conv}, parallel: x -> h",
                code="tuner/does-not-fit",
            )
        groups, kernel = op.attributes.get("groups", 1), op.attributes.get("kernel_size")
        if config.r % groups:
            fix = f"set r to a multiple of {groups}"
            raise UtcError(
                f"r: {config.r} is not divisible by the convolution's {groups} groups", fix=fix, code="tuner/option"
            )
        if kernel is None:
            raise UtcError(
                "the kernel of this convolution is unknown",
                why="its weight is not a parameter",
                code="tuner/does-not-fit",
            )
        spatial = int(op.name[-2])
        a = (config.r, site.source.channels, *kernel)
        b = (site.target.channels, config.r // groups, *[1] * spatial)
        settings = {k: op.attributes[k] for k in ("stride", "padding") if k in op.attributes}
        return cls(config, a, b, groups, settings)

    def inner(self) -> Inner | None:
        """The rank; None with groups, each of which has its share of it."""
        return Inner("r", {"lora_A": 0, "lora_B": 1}, ("lora_B",)) if self.groups == 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`s·B(A(x))`."""
        conv = _CONVS[f"conv{self.lora_A.dim() - 2}d"]
        if self.dropout is not None:
            x = self.dropout(x)
        y: torch.Tensor = conv(conv(x, self.lora_A, None, **self.settings), self.lora_B, None, groups=self.groups)
        return y * self.scaling
