"""LoRA on any operation with a weight: `W + s·B·A`."""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from utcompile.errors import UtcError
from utcompile.graph import Operation
from utcompile.ops import Trait, having
from utcompile.tuners.base import Tuner, TunerConfig, register_tuner
from utcompile.tuners.branches import BRANCHES, Branch
from utcompile.tuners.forms import How, cheaper_form
from utcompile.tuners.precision import in_own_dtype
from utcompile.tuners.sites import WeightSite
from utcompile.tuners.slices import Slices, places

_SMALL = 16  # a rank up to here costs nothing, and rules have one rank for wide and narrow layers
_PRODUCTS = having(Trait.PRODUCT)  # of a weight with three axes, the first counts the experts


class LoraConfig(TunerConfig):
    """`{kind: lora, r: 8, alpha: 16}`."""

    kind: Literal["lora"] = "lora"
    r: int = Field(8, ge=1, description="rank of the update")
    alpha: float = Field(8, gt=0, description="the update is scaled by alpha / r")
    rslora: bool = Field(False, description="scale by alpha / √r instead")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the branch's input, in training")
    slices: Slices = None
    how: How = Field("auto", description="branch, reparametrised, or by cost")


@register_tuner("lora")
class Lora(Tuner):
    """Low-rank adaptation (arXiv:2106.09685, Eq. 3) of a weight: `W' = W + s·B·A`, `s = α/r`.

    The weight is read as a matrix, its first axis against all others: B is `(rows, r)`, A `(r, *rest)`. A linear's or
    convolution's rows are the outputs (and A is `(r, in/groups, *kernel)`), a transposed convolution's, a matmul's and
    an embedding's are the inputs; with `slices` a matmul's are the outputs too. Stacked weights
    `(E, …, …)` of a matmul or einsum have an A and a B for each of E.

    Two forms, equal in exact arithmetic, chosen by cost (`tuners/forms.py`) or by `how`: as a *branch*,
    `y + s·B(A(x))`; *reparametrised*, `OP(x; W + s·BA)`, the second weight computed again in backward. Grouped
    convolutions, einsums, recurrent layers and weights that the model computes first (slices, weight standardisation)
    have no branch.
    `rslora`: `s = α/√r` (arXiv:2312.03732). `slices`: factors for some rows of a packed projection alone.

    Init: A Kaiming-uniform, B zero, so it is the identity at the start. Parameters: `r·(rows + rest)`, a slice.
    Folds: absorbed, `W += s·BA`.
    """

    config_class: ClassVar[type[TunerConfig]] = LoraConfig
    forms = ("weight",)
    reads_parameters = True

    def __init__(
        self,
        config: LoraConfig,
        weight_shape: tuple[int, ...],
        branch: Branch | None,
        rows: tuple[tuple[int, ...], ...] = (),
        stacked: bool = False,
        turned: bool = False,
    ) -> None:
        super().__init__()
        self.weight_shape, self.turned = tuple(weight_shape[::-1] if turned else weight_shape), turned
        self.stack = self.weight_shape[:1] if stacked else ()
        out, *rest = self.weight_shape[len(self.stack) :]
        self.scaling = config.alpha / (config.r**0.5 if config.rslora else config.r)
        self.rank, self.slice_count = config.r, max(len(rows), 1)
        tuned = sum(map(len, rows)) if rows else out
        self.lora_A = nn.Parameter(torch.empty(*self.stack, self.slice_count * config.r, *rest))
        self.lora_B = nn.Parameter(torch.zeros(*self.stack, tuned, config.r))
        for a in self.lora_A.view(-1, config.r, prod(rest)):
            nn.init.kaiming_uniform_(a, a=5**0.5)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else None
        self.branch = branch
        self.how = "reparametrised" if branch is None else "branch"
        self.slice_sizes = tuple(map(len, rows))
        if rows:  # rows of no slice read the row of zeros after the last
            self.register_buffer("place", places(rows, out), persistent=False)

    @classmethod
    def build(cls, config: LoraConfig, site: WeightSite) -> Lora:
        """Read the operation's attributes and choose the form."""
        op = site.operation
        if len(site.weight_shape) < 2:
            raise UtcError(
                f"LoRA does not apply to {op.name}, whose weight is {list(site.weight_shape)}",
                why="an update of low rank needs a matrix",
                fix="tune it with {kind: ssf} or {kind: norm_affine}, or exclude the place in `where:`",
            )
        stacked = (op.name in _PRODUCTS or op.name == "parameter") and len(site.weight_shape) == 3
        rows = site.weight_shape[stacked]
        columns = prod(site.weight_shape) // max(prod(site.weight_shape[:stacked]) * rows, 1)
        if config.r > max(rows, columns, _SMALL):
            raise UtcError(
                f"the rank {config.r} is larger than the weight, a matrix of {rows} by {columns}",
                why="an update of a rank above both sides says nothing more, and costs more than the weight",
                fix=f"set r to {min(rows, columns)} or less",
            )
        branch, why_not = cls.branch_of(op, site)
        turned = op.name == "matmul" and bool(site.rows)  # the weight is (in, out), and its slices are columns
        if turned:
            branch, why_not = None, "slices of a matmul's weight are columns"
        if stacked and site.rows:
            raise UtcError("stacked weights have no slices", fix="leave out `slices:`")
        if config.how == "branch" and branch is None:
            raise UtcError(f"LoRA has no branch here: {why_not}", fix="leave out `how:`, or say how: reparametrised")
        if config.how == "reparametrised":
            branch, why_not = None, "the rule says how: reparametrised"
        elif config.how == "auto" and branch is not None and not config.dropout:
            rank = config.r * max(len(site.rows), 1)
            if not site.held and cheaper_form(op.name, site, rank) == "reparametrised":
                branch = None
        if config.dropout and branch is None:
            raise UtcError(
                f"LoRA with dropout does not apply here: {why_not}",
                why="its update is added to the weight, where there is no input to drop",
                fix="set dropout: 0 for this rule",
            )
        return cls(config, site.weight_shape, branch, site.rows, stacked, turned)

    @classmethod
    def branch_of(cls, op: Operation, site: WeightSite) -> tuple[Branch | None, str]:
        """The operation's branch; None and the reason where it has none."""
        if op.attributes.get("groups", 1) != 1:
            return None, "the convolution is grouped"
        if op.name not in BRANCHES:
            return None, f"{op.name} has none"
        if not site.direct:
            return None, "the model computes the weight before it uses it"
        return Branch(op.name, op.attributes), ""

    def delta(self) -> torch.Tensor:
        """The update `s·B·A` in the shape of the weight."""
        a = self.lora_A.flatten(1 + len(self.stack))
        # in place: nothing more is saved for backward, and no second tensor of the weight's size is made
        update = (self._up() @ a).mul_(self.scaling).reshape(self.weight_shape)
        return update.mT if self.turned else update

    def changed(self, weight: torch.Tensor) -> torch.Tensor:
        """W -> W + s·BA."""
        return weight + self.delta().to(weight.dtype)

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> Any:
        """Branch: the operation's input and result -> its new result; without the result, what is added to it.

        Reparametrised: W -> W'.
        """
        return super().forward(x) if self.branch is None else self._branch(x, y)

    @in_own_dtype
    def _branch(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        assert self.branch is not None
        if self.dropout is not None:
            x = self.dropout(x)
        if y is None:
            return self.branch.share(x, self.lora_A, self._up()) * self.scaling
        return self.branch(x, y, self.lora_A, self._up(), self.scaling)

    def _up(self) -> torch.Tensor:
        """B, `(rows, r)`; with slices the block matrix of theirs, each in its rows, `(rows, slices·r)`."""
        if not self.slice_sizes:
            return self.lora_B
        last = self.slice_count - 1
        parts = self.lora_B.split(self.slice_sizes)
        blocks = [nn.functional.pad(b, (i * self.rank, (last - i) * self.rank)) for i, b in enumerate(parts)]
        blocks.append(self.lora_B.new_zeros(1, self.slice_count * self.rank))
        return torch.cat(blocks).index_select(0, self.get_buffer("place"))
