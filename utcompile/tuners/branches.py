"""LoRA's branch, `y + s·B(A(x))`, for each kind of operation.

In training it runs as one autograd function: the sum is made in y's memory, A(x) is kept as `(r, positions)`, and all
six thin products are taken in the orientation in which their long side is the fast one. On one CPU thread, ViT-S/16,
r = 8, that is 3 to 7 times faster than the same products written as linears. Elsewhere (inference, autocast,
`torch.compile`, export, functorch) it is the plain formula, which a compiler may fuse as it likes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from utcompile.graph import Context, autocast_dtype, function_of, runs_plainly
from utcompile.ops import Trait, having

_CONVS = having(Trait.CONV)
_TRANSPOSED = having(Trait.CONV_TRANSPOSE)
_CALLS = {name: function_of(name) for name in (*_CONVS, *_TRANSPOSED)}
_SMALL = 2**18  # numbers
BRANCHES = having(Trait.OUTPUTS_FIRST | Trait.OUTPUTS_LAST | Trait.CONV_TRANSPOSE)


class Branch:
    """`(x, y) -> y + s·B(A(x))` with the stride, padding and dilation of the tuned operation.

    A and B are the factors of the weight as a matrix, `W' = W + s·B A` with B `(rows, r)` and A `(r, …)`. Which of them
    meets x first depends on where the operation's weight has its inputs: a linear's are the columns, a transposed
    convolution's, an embedding's and a matmul's are the rows.

    Args:
        name: the operation.
        attributes: its attributes by schema name.
    """

    def __init__(self, name: str, attributes: Mapping[str, Any]) -> None:
        self.name = name
        self.spatial = int(name[-2]) if name in _CONVS or name in _TRANSPOSED else 0
        self.settings = {k: attributes[k] for k in ("stride", "padding", "dilation") if k in attributes}
        self.output_padding = attributes.get("output_padding", 0)
        self.padding_idx = attributes.get("padding_idx")
        self.padding_mode = attributes.get("padding_mode", "zeros")

    def __call__(self, x: torch.Tensor, y: torch.Tensor, a: torch.Tensor, b: torch.Tensor, s: float) -> torch.Tensor:
        """The operation's input and result -> its result with the changed weight."""
        if self.name == "linear" and _fusible(x, y, a, b):
            return _LinearBranch.apply(x, y, a, b, s)
        plain = self.padding_mode == "zeros" and not isinstance(self.settings.get("padding"), str)
        if self.name in _CONVS and plain and _fusible(x, y, a, b):
            if is_small(y.numel()):
                return y.add_(self.share(x, a, b), alpha=s)
            return _ConvBranch.apply(x, y, a, b, s, self.name, self.settings)
        return y + self.scaled_share(x, a, b, s)

    def scaled_share(self, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, s: float) -> torch.Tensor:
        """`s·B(A(x))`. B is small, and an exporter folds s into it; autograd would keep the scaled one besides."""
        if torch.is_grad_enabled() and not runs_plainly(x, a, b):
            return self.share(x, a, b) * s
        return self.share(x, a, b * s)

    def share(self, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """`B(A(x))` by the plain formula."""
        if self.name == "linear":
            return F.linear(F.linear(x, a), b)
        if self.name == "embedding":
            return F.embedding(x, b, self.padding_idx) @ a
        if self.name == "matmul":
            return (x @ b) @ a
        one = [1] * self.spatial
        if self.name in _TRANSPOSED:
            hidden = _CALLS[f"conv{self.spatial}d"](x, b.mT.reshape(b.shape[1], b.shape[0], *one))
            call = _CALLS[self.name]
            return call(hidden, a, None, output_padding=self.output_padding, **self.settings)
        settings = dict(self.settings)
        if self.padding_mode != "zeros":
            x = F.pad(x, edges(settings["padding"], a.shape[2:], settings["dilation"]), mode=self.padding_mode)
            settings["padding"] = 0
        conv = _CALLS[self.name]
        return conv(conv(x, a, None, **settings), b.reshape(*b.shape, *one))


def is_small(numbers: int) -> bool:
    """Whether a convolution's result is so small that torch's own operations take less time than a call of Python.

    Measured on a CPU: up to here they take 0.85 to 0.99 of the time; of a linear they never do.
    """
    return numbers <= _SMALL


def edges(padding: str | int | Sequence[int], kernel: tuple[int, ...], dilation: int | Sequence[int]) -> list[int]:
    """A convolution's padding in `F.pad`'s order: the last dimension first, before and after."""
    if isinstance(padding, str):
        steps = (dilation,) * len(kernel) if isinstance(dilation, int) else dilation
        totals = [d * (k - 1) if padding == "same" else 0 for d, k in zip(steps, kernel, strict=True)]
        return [e for t in reversed(totals) for e in (t // 2, t - t // 2)]
    sides = (padding,) * len(kernel) if isinstance(padding, int) else padding
    return [e for p in reversed(sides) for e in (p, p)]


def _fusible(x: torch.Tensor, y: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether this is plain training: gradients are on, all dtypes are equal, and no mode sees the operations."""
    return (
        torch.is_grad_enabled()
        and not runs_plainly(x, y, a, b)
        and autocast_dtype(x.device.type) is None
        and x.dtype == y.dtype == a.dtype == b.dtype
        and y.is_contiguous()
    )


class _LinearBranch(torch.autograd.Function):
    """Over the last axis: `h = A xᵀ`, `y += s·hᵀBᵀ`."""

    @staticmethod
    def forward(
        ctx: Context, x: torch.Tensor, y: torch.Tensor, a: torch.Tensor, b: torch.Tensor, s: float
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        hidden = a @ flat.t()
        total = y.detach()  # in y's memory: no other code reads y; a write to a view that autograd sees would copy it
        total.view(-1, y.shape[-1]).addmm_(hidden.t(), b.t(), alpha=s)
        ctx.save_for_backward(x, hidden, a, b)
        ctx.s = s
        return total

    @staticmethod
    def backward(ctx: Context, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, hidden, a, b = ctx.saved_tensors
        flat, g = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        if torch.is_grad_enabled():  # a gradient of gradients passes through A(x), which was made without a graph
            hidden = a @ flat.t()
        h = (b.t() @ g.t()) * ctx.s
        needed = ctx.needs_input_grad
        return (
            (h.t() @ a).view(x.shape) if needed[0] else None,
            grad if needed[1] else None,
            h @ flat if needed[2] else None,
            (hidden @ g).t() * ctx.s if needed[3] else None,
            None,
        )


class _ConvBranch(torch.autograd.Function):
    """`h = A ∗ x`, then `y += s·B h` at every position."""

    @staticmethod
    def forward(
        ctx: Context,
        x: torch.Tensor,
        y: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        s: float,
        name: str,
        settings: dict[str, object],
    ) -> torch.Tensor:
        hidden = _CALLS[name](x, a, None, **settings)
        total = y.detach()
        total.view(*y.shape[:2], -1).baddbmm_(b.expand(len(y), -1, -1), hidden.flatten(2), alpha=s)
        ctx.save_for_backward(x, hidden, a, b)
        ctx.s, ctx.operation, ctx.settings = s, name, settings
        return total

    @staticmethod
    def backward(ctx: Context, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, hidden, a, b = ctx.saved_tensors
        g = grad.flatten(2)
        if torch.is_grad_enabled():
            hidden = _CALLS[ctx.operation](x, a, None, **ctx.settings)
        needed = ctx.needs_input_grad
        h = (torch.bmm(b.t().expand(len(g), -1, -1), g) * ctx.s).view(hidden.shape)
        dx, da = conv_backward(ctx.settings, h, x, a, needed[0], needed[2])
        db = torch.bmm(hidden.flatten(2), g.mT).sum(0).t() * ctx.s if needed[3] else None
        return dx, grad if needed[1] else None, da, db, None, None, None


def conv_backward(
    settings: Mapping[str, Any], grad: torch.Tensor, x: torch.Tensor, a: torch.Tensor, of_x: bool, of_a: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The gradients of `conv(x, a)` for x and a."""
    n = a.dim() - 2

    def sides(name: str) -> list[int]:
        value = settings[name]
        return [value] * n if isinstance(value, int) else list(value)

    dx, da, _ = torch.ops.aten.convolution_backward(
        grad,
        x,
        a,
        None,
        sides("stride"),
        sides("padding"),
        sides("dilation"),
        False,
        [0] * n,
        1,
        [of_x, of_a, False],
    )
    return dx, da
