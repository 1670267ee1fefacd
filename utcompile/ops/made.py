"""Operations that make a tensor of no other's numbers, read a size, or mark a region: no pattern can name these."""

from __future__ import annotations

from utcompile.ops.row import Row, op
from utcompile.ops.traits import NONE
from utcompile.ops.traits import Axes as A
from utcompile.ops.traits import Trait as T

_DTYPE = "dtype=None, layout=None, device=None, requires_grad=False, _pin_memory=False"
_LIKE = "dtype=None, layout=None, device=None, requires_grad=False, pin_memory=False, memory_format=None"

MADE: tuple[Row, ...] = (
    op("arange", "", T.MADE, A.UNKNOWN, f"start=0, end=None, step=1, *, {_DTYPE}", "torch.arange"),
    op("linspace", "", NONE, A.UNKNOWN, f"start, end, steps, *, {_DTYPE}", "torch.linspace"),
    op("zeros", "", T.MADE, A.UNKNOWN, f"*size, {_DTYPE}", "torch.zeros"),
    op("ones", "", T.MADE, A.UNKNOWN, f"*size, {_DTYPE}", "torch.ones"),
    op("empty", "", NONE, A.UNKNOWN, f"*size, {_DTYPE}", "torch.empty"),
    op("rand", "", NONE, A.UNKNOWN, f"*size, {_DTYPE}", "torch.rand"),
    op("randn", "", NONE, A.UNKNOWN, f"*size, {_DTYPE}", "torch.randn"),
    op("full", "", T.MADE, A.UNKNOWN, f"size, fill_value, *, {_DTYPE}", "torch.full"),
    op("eye", "", NONE, A.UNKNOWN, f"n, m=None, *, {_DTYPE}", "torch.eye"),
    op("randint", "", NONE, A.UNKNOWN, f"low, high, size, *, {_DTYPE}", "torch.randint"),
    op("randperm", "", NONE, A.UNKNOWN, f"n, *, {_DTYPE}", "torch.randperm"),
    op("tensor", "", T.MADE, A.UNKNOWN,
       f"data, *, {_DTYPE}", "torch.tensor torch.as_tensor torch.scalar_tensor torch.asarray"),
    op("tril_indices", "", NONE, A.UNKNOWN, f"row, col, offset=0, *, {_DTYPE}", "torch.tril_indices"),
    op("triu_indices", "", NONE, A.UNKNOWN, f"row, col, offset=0, *, {_DTYPE}", "torch.triu_indices"),
    op("zeros_like", "", T.MADE_LIKE, A.UNKNOWN, f"input, {_LIKE}", "torch.zeros_like"),
    op("ones_like", "", T.MADE_LIKE, A.UNKNOWN, f"input, {_LIKE}", "torch.ones_like"),
    op("empty_like", "", NONE, A.UNKNOWN, f"input, {_LIKE}", "torch.empty_like"),
    op("rand_like", "", NONE, A.UNKNOWN, f"input, {_LIKE}", "torch.rand_like"),
    op("randn_like", "", NONE, A.UNKNOWN, f"input, {_LIKE}", "torch.randn_like"),
    op("full_like", "", T.MADE_LIKE, A.UNKNOWN, f"input, fill_value, {_LIKE}", "torch.full_like"),
    op("new_zeros", "", T.MADE_LIKE, A.UNKNOWN, f"input, *size, {_LIKE}", "T.new_zeros"),
    op("new_ones", "", T.MADE_LIKE, A.UNKNOWN, f"input, *size, {_LIKE}", "T.new_ones"),
    op("new_empty", "", NONE, A.UNKNOWN, f"input, *size, {_LIKE}", "T.new_empty"),
    op("new_full", "", T.MADE_LIKE, A.UNKNOWN, f"input, size, fill_value, {_LIKE}", "T.new_full"),
    op("new_tensor", "", NONE, A.UNKNOWN, f"input, data, {_LIKE}", "T.new_tensor"),
    op("multinomial", "", NONE, A.UNKNOWN, "input, num_samples, replacement=False", "multinomial"),
    op("size", "", NONE, A.UNKNOWN, "input, dim=None", "T.size"),
    op("dim", "", NONE, A.UNKNOWN, "input", "T.dim"),
    op("numel", "", NONE, A.UNKNOWN, "input", "T.numel"),
    op("item", "", NONE, A.UNKNOWN, "input", "T.item"),
    op("tolist", "", NONE, A.UNKNOWN, "input", "T.tolist"),
    op("requires_grad", "", NONE, A.KEEP, "input", "T.requires_grad"),
    op("getattr", "", NONE, A.UNKNOWN, "input, name", "py.getattr"),
    op("enter_autocast", "", NONE, A.UNKNOWN, "*settings", "torch.amp.autocast_mode._enter_autocast"),
    op("exit_autocast", "", NONE, A.UNKNOWN, "entered", "torch.amp.autocast_mode._exit_autocast"),
    op("weight_norm", "", NONE, A.UNKNOWN, "v, g, dim=0", "torch._weight_norm"),
)  # fmt: skip
