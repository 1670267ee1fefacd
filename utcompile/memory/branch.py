"""LoRA's branch that keeps what its input is made of, instead of its input."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from utcompile.graph import Context, autocast_dtype, function_of, runs_plainly
from utcompile.memory.recipe import Recipe, Remade
from utcompile.tuners import Lora
from utcompile.tuners.branches import conv_backward


def remade_branch(recipe: Recipe, tuner: Lora, x: torch.Tensor, y: torch.Tensor, *given: object) -> torch.Tensor:
    """`tuner(x, y)`, with x made again for backward.

    Args:
        recipe: makes x of `given`.
        tuner: whose branch it is.
        x: what the tuned operation reads.
        y: what it yields; nothing else reads it.
        given: what the recipe starts from; its tensors are kept.
    """
    if runs_plainly(x, y, tuner.lora_A) or not _is_plain(tuner, x, y):
        return tuner(x, y)
    a, b = tuner.lora_A, tuner._up()
    (made, kept), branch = Remade.here(recipe, given, x), tuner.branch
    assert branch is not None
    if branch.name != "linear":
        own, settings = x.to(a.dtype), (branch.name, branch.settings)
        return _ConvBranch.apply(made, tuner.scaling, settings, own, y.to(a.dtype), a, b, *kept).to(x.dtype)
    if made.lowered is not None:
        return y + _Share.apply(made, x, a, b, *kept) * tuner.scaling
    return _LinearBranch.apply(made, tuner.scaling, x, y.to(a.dtype), a, b, *kept).to(x.dtype)


def _is_plain(tuner: Lora, x: torch.Tensor, y: torch.Tensor) -> bool:
    dropped = tuner.dropout is not None and tuner.dropout.p > 0 and tuner.training
    branch = tuner.branch
    if branch is None or dropped:
        return False
    if branch.name != "linear":
        simple = branch.padding_mode == "zeros" and not isinstance(branch.settings.get("padding"), str)
        if not simple or autocast_dtype(x.device.type) is not None:
            return False
    wanted = tuner.lora_A.requires_grad and tuner.lora_A.dtype == tuner.lora_B.dtype
    return (
        wanted
        and y.is_contiguous()
        and x.is_floating_point()
        and (x.dtype == y.dtype or autocast_dtype(x.device.type) is not None)
    )


class _LinearBranch(torch.autograd.Function):
    """As the branch of `tuners/branches.py`: `h = A xᵀ`, `y += s·hᵀBᵀ` in y's memory."""

    @staticmethod
    def forward(
        ctx: Context,
        made: Remade,
        s: float,
        x: torch.Tensor,
        y: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        *given: torch.Tensor | None,
    ) -> torch.Tensor:
        hidden = a @ x.reshape(-1, x.shape[-1]).to(a.dtype).t()
        total = y.detach()
        total.view(-1, y.shape[-1]).addmm_(hidden.t(), b.t(), alpha=s)
        ctx.save_for_backward(a, b, *given)
        ctx.made, ctx.s, ctx.like = made, s, (x.shape, x.dtype)
        return total

    @staticmethod
    def backward(ctx: Context, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        a, b, *given = ctx.saved_tensors
        shape, dtype = ctx.like
        wanted = ctx.needs_input_grad[2:6]
        g = grad.reshape(-1, grad.shape[-1])
        x = ctx.made.make(given).reshape(-1, shape[-1]).to(a.dtype)
        h = (b.t() @ g.t()) * ctx.s
        return (
            None,
            None,
            (h.t() @ a).view(shape).to(dtype) if wanted[0] else None,
            grad if wanted[1] else None,
            h @ x if wanted[2] else None,
            ((a @ x.t()) @ g).t() * ctx.s if wanted[3] else None,
            *[None] * len(given),
        )


class _ConvBranch(torch.autograd.Function):
    """As the branch of `tuners/branches.py`: `h = A ∗ x`, then `y += s·B h` at every position, in y's memory."""

    @staticmethod
    def forward(
        ctx: Context,
        made: Remade,
        s: float,
        settings: tuple[str, dict[str, object]],
        x: torch.Tensor,
        y: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        *given: torch.Tensor | None,
    ) -> torch.Tensor:
        hidden = function_of(settings[0])(x, a, None, **settings[1])
        total = y.detach()
        total.view(*y.shape[:2], -1).baddbmm_(b.expand(len(y), -1, -1), hidden.flatten(2), alpha=s)
        ctx.save_for_backward(hidden, a, b, *given)
        ctx.made, ctx.s, ctx.settings = made, s, settings
        return total

    @staticmethod
    def backward(ctx: Context, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, a, b, *given = ctx.saved_tensors
        x = ctx.made.make(given).to(a.dtype)
        if torch.is_grad_enabled():
            hidden = function_of(ctx.settings[0])(x, a, None, **ctx.settings[1])
        g, wanted = grad.flatten(2), ctx.needs_input_grad[3:7]
        h = (torch.bmm(b.t().expand(len(g), -1, -1), g) * ctx.s).view(hidden.shape)
        of_x, of_a = conv_backward(ctx.settings[1], h, x, a, wanted[0], wanted[2])
        of_b = torch.bmm(hidden.flatten(2), g.mT).sum(0).t() * ctx.s if wanted[3] else None
        return None, None, None, of_x, grad if wanted[1] else None, of_a, of_b, *[None] * len(given)


class _Share(torch.autograd.Function):
    """`B(A(x))` under autocast, by the plain formula."""

    @staticmethod
    def forward(
        ctx: Context, made: Remade, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *given: torch.Tensor | None
    ) -> torch.Tensor:
        hidden = F.linear(x, a)
        ctx.save_for_backward(hidden, a, b, *given)
        ctx.made, ctx.like = made, (x.shape, x.dtype)
        return F.linear(hidden, b)

    @staticmethod
    def backward(ctx: Context, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, a, b, *given = ctx.saved_tensors
        shape, dtype = ctx.like
        _, of_x, of_a, of_b = ctx.needs_input_grad[:4]
        g = grad.reshape(-1, grad.shape[-1])
        x = ctx.made.make(given).to(hidden.dtype).reshape(-1, shape[-1]) if of_a or torch.is_grad_enabled() else None
        if torch.is_grad_enabled():
            hidden = F.linear(x, a.to(grad.dtype))  # type: ignore[arg-type]
        h = g @ b.to(grad.dtype)
        return (
            None,
            (h @ a.to(grad.dtype)).view(shape).to(dtype) if of_x else None,
            (h.t() @ x).to(a.dtype) if of_a and x is not None else None,
            (g.t() @ hidden.reshape(-1, hidden.shape[-1])).to(b.dtype) if of_b else None,
            *[None] * len(given),
        )
