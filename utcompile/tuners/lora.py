"""LoRA on any operation with a weight: `W + s·B·A`."""

from __future__ import annotations

from math import prod
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from utcompile.errors import UtcError
from utcompile.graph import Operation
from utcompile.ops import Trait, having
from utcompile.tuners.base import Tuner, TunerConfig, register_tuner
from utcompile.tuners.branches import BRANCHES, Branch
from utcompile.tuners.forms import How, cheaper_form
from utcompile.tuners.inner import Inner
from utcompile.tuners.precision import in_own_dtype
from utcompile.tuners.sites import WeightSite
from utcompile.tuners.slices import Slices, places

_SMALL = 16  # a rank up to this costs little, and a rule has one rank for wide and narrow layers
_PRODUCTS = having(Trait.PRODUCT)  # of a weight with three axes, the first counts the experts


class LoraConfig(TunerConfig):
    """`{kind: lora, r: 8, alpha: 16}`."""

    kind: Literal["lora"] = "lora"
    r: int = Field(8, ge=1, description="rank of the update")
    alpha: float = Field(8, gt=0, description="the update is multiplied by alpha / r")
    rslora: bool = Field(False, description="multiply by alpha / √r instead of alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout rate of the branch's input, in training")
    slices: Slices = None
    how: How = Field(
        "auto",
        description="branch, reparametrised, auto: the form that costs less by count, or measured: the form that is "
        "the fastest where the rules are matched",
    )
    as_one: bool | None = Field(
        None,
        description="whether the operation and its update run as one in training; null: if that is cheaper",
    )
    free: ClassVar[frozenset[str]] = frozenset(["r", "alpha", "rslora", "dropout"])

    def result_factor(self) -> float:
        """α/r, or α/√r."""
        return self.alpha / (self.r**0.5 if self.rslora else self.r)


@register_tuner("lora")
class Lora(Tuner):
    """Low-rank adaptation of the weight of any operation.

    Computes:
        `W' = W + s·B·A`, with `s = α/r`, or `s = α/√r` with `rslora: true`.

        The weight is read as a matrix: its first axis is the rows, all other axes together are the columns. The rows of
        a linear or convolution are its outputs; the rows of a transposed convolution, a matmul and an embedding are its
        inputs. Stacked weights `(E, …, …)` of a matmul or einsum, as of experts, have an A and a B for each of the E.

        There are two forms, equal in exact arithmetic. *Branch*: `y + s·B(A(x))`. *Reparametrised*: `OP(x; W + s·BA)`,
        whose second weight is computed again in backward instead of being stored. The form with the lower count of
        FLOPs and bytes is taken (`utcompile/tuners/forms.py`), or the one that `how` names; the plan shows it. With
        `how: measured`, one training step of the site alone is timed in each form, and the plan has the choice and the
        times. Grouped convolutions, einsums, recurrent layers and weights that the model computes (a slice, weight
        standardisation) have no branch.

        `slices: [q, v]` tunes some output channels of a packed weight: rows of a linear's, columns of `x @ W`. A name
        is a capture; its channels are found by sending the numbers of the packed channels through the operations
        between, so heads may interleave. `1/3` is the first of three equal parts.

    Shapes:
        B is `(rows, r)`, A `(r, *rest)`: `(r, in)` for a linear, `(r, in/groups, *kernel)` for a convolution.

    Init:
        A is Kaiming-uniform, B is zero; the tuner is the identity at the start.

    Parameters:
        `r · (rows + rest)` per slice. ViT-B/16, r = 8, all 48 linears of the blocks: 12 blocks · 8·((768 + 2304) + (768
        + 768) + (768 + 3072) + (3072 + 768)) = 1,179,648; with a head of 100 classes 1,256,548.

    Folds:
        Absorbed: `W += s·BA`.

    Operations:
        Linears; convolutions of any kernel, stride, dilation, groups and padding mode; transposed convolutions;
        embeddings; matmul, `bmm` and einsum with a parameter; LSTM, GRU and their cells (each of their weights has its
        own factors); the projections of `nn.MultiheadAttention`; a parameter itself (`match: {parameter: …}`). Where
        the model computes the weight, the parameter is tuned and the computation follows.

    Source:
        LoRA, arXiv:2106.09685, Eq. 3; rsLoRA, arXiv:2312.03732.
    """

    config_class: ClassVar[type[TunerConfig]] = LoraConfig
    forms = ("weight",)
    reads_parameters = True
    as_one: bool | None = None

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
        self.scaling = config.result_factor()
        self.rank, self.slice_count = config.r, max(len(rows), 1)
        tuned = sum(map(len, rows)) if rows else out
        self.lora_A = nn.Parameter(torch.empty(*self.stack, self.slice_count * config.r, *rest))
        self.lora_B = nn.Parameter(torch.zeros(*self.stack, tuned, config.r))
        for a in self.lora_A.view(-1, config.r, prod(rest)):
            nn.init.kaiming_uniform_(a, a=5**0.5)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else None
        self.branch = branch
        self.how = "reparametrised" if branch is None else "branch"
        self.as_one = config.as_one
        self.slice_sizes = tuple(map(len, rows))
        if rows:  # rows in no slice read the row of zeros after the last
            self.register_buffer("place", places(rows, out), persistent=False)

    @classmethod
    def build(cls, config: LoraConfig, site: WeightSite) -> Lora:
        """Read the operation's attributes and choose the form."""
        op = site.operation
        if len(site.weight_shape) < 2:
            raise UtcError(
                f"LoRA does not apply to {op.name}, whose weight is {list(site.weight_shape)}",
                why="an update of low rank needs a matrix",
                fix="tune it with {kind: ssf} or {kind: norm_affine}, or exclude the site in `where:`",
                code="tuner/does-not-fit",
            )
        stacked = (op.name in _PRODUCTS or op.name == "parameter") and len(site.weight_shape) == 3
        rows = site.weight_shape[stacked]
        columns = prod(site.weight_shape) // max(prod(site.weight_shape[:stacked]) * rows, 1)
        if config.r > max(rows, columns, _SMALL):
            raise UtcError(
                f"the rank {config.r} is larger than the weight, a matrix of {rows} by {columns}",
                why="a rank above both sides adds no freedom to the update, and costs more than the weight itself",
                fix=f"set r to {min(rows, columns)} or less",
                code="tuner/option",
            )
        branch, why_not = cls.branch_of(op, site)
        turned = op.name == "matmul" and bool(site.rows)  # the weight is (in, out), and its slices are columns
        if turned:
            branch, why_not = None, "slices of a matmul's weight are columns"
        if stacked and site.rows:
            raise UtcError("stacked weights have no slices", fix="leave out `slices:`", code="tuner/does-not-fit")
        if config.how == "branch" and branch is None:
            raise UtcError(
                f"LoRA has no branch here: {why_not}",
                fix="leave out `how:`, or write `how: reparametrised`",
                code="tuner/does-not-fit",
            )
        if config.how == "reparametrised":
            branch, why_not = None, "the rule has `how: reparametrised`"
        elif config.how in ("auto", "measured") and branch is not None and not config.dropout:
            rank = config.r * max(len(site.rows), 1)
            if not site.only_branch and cheaper_form(op.name, site, rank) == "reparametrised":
                branch = None
        if config.dropout and branch is None:
            raise UtcError(
                f"LoRA with dropout does not apply here: {why_not}",
                why="its update is added to the weight, where there is no input to drop",
                fix="set `dropout: 0` in this rule",
                code="tuner/does-not-fit",
            )
        return cls(config, site.weight_shape, branch, site.rows, stacked, turned)

    @classmethod
    def branch_of(cls, op: Operation, site: WeightSite) -> tuple[Branch | None, str]:
        """The operation's branch; None and the reason where it has none."""
        if op.attributes.get("groups", 1) != 1:
            return None, "the convolution is grouped"
        if op.name not in BRANCHES:
            return None, f"a branch of {op.name} is not implemented"
        if not site.direct:
            return None, "the model computes the weight before it uses it"
        return Branch(op.name, op.attributes), ""

    def inner(self) -> Inner | None:
        """The rank; None with slices, whose factors lie in blocks."""
        if self.slice_sizes:
            return None
        first = len(self.stack)
        return Inner("r", {"lora_A": first, "lora_B": first + 1}, ("lora_B",))

    def delta(self) -> torch.Tensor:
        """The update `s·B·A` in the shape of the weight."""
        a = self.lora_A.flatten(1 + len(self.stack))
        # in place, so that nothing more is saved for backward and no second tensor of the weight's size is allocated
        update = (self._up() @ a).mul_(self.scaling).reshape(self.weight_shape)
        return update.mT if self.turned else update

    def changed(self, weight: torch.Tensor) -> torch.Tensor:
        """W -> W + s·BA."""
        return weight + self.delta().to(weight.dtype)

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> object:
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
            return self.branch.scaled_share(x, self.lora_A, self._up(), self.scaling)
        return self.branch(x, y, self.lora_A, self._up(), self.scaling)

    def _up(self) -> torch.Tensor:
        """B, `(rows, r)`; with slices the block matrix of their factors, each in its rows, `(rows, slices·r)`."""
        if not self.slice_sizes:
            return self.lora_B
        last = self.slice_count - 1
        parts = self.lora_B.split(self.slice_sizes)
        blocks = [nn.functional.pad(b, (i * self.rank, (last - i) * self.rank)) for i, b in enumerate(parts)]
        blocks.append(self.lora_B.new_zeros(1, self.slice_count * self.rank))
        return torch.cat(blocks).index_select(0, self.get_buffer("place"))
