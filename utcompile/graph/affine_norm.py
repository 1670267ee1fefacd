"""BatchNorm in eval is an affine map of its channels; run as one, it saves nothing for backward, unless it is small.

`F.batch_norm` keeps its input for the gradients of its weight and statistics, which a frozen one does not have. The
forward here is the same call, bit for bit; the backward is `grad · w / √(var + ε)`, the same norm of a mean of zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from utcompile.graph.context import Context
from utcompile.graph.observed import runs_plainly

_SMALL = 2**15  # numbers: up to here, what would be saved is less than what a call of Python costs


def affine_batch_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """`F.batch_norm` in eval; where only its input needs a gradient, nothing is saved for backward of a large input.

    Example:
        >>> x = torch.randn(2, 3, 8192, requires_grad=True)
        >>> y = affine_batch_norm(x, torch.zeros(3), torch.ones(3), torch.tensor([1.0, 2.0, 3.0]))
        >>> y.sum().backward()
        >>> x.grad[0, :, 0].round(decimals=3)
        tensor([1., 2., 3.])
    """
    plain = training or torch.compiler.is_compiling() or not torch.is_grad_enabled() or not input.requires_grad
    plain = plain or input.numel() <= _SMALL
    state = (running_mean, running_var, weight, bias)
    trains = any(t is not None and t.requires_grad for t in state)
    if plain or trains or runs_plainly(input, *state):
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    result: torch.Tensor = _Affine.apply(input, running_mean, running_var, weight, bias, eps)
    return result


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        x: torch.Tensor,
        mean: torch.Tensor,
        variance: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(variance, weight)  # the model's own tensors
        ctx.eps = eps
        return torch.batch_norm(x, weight, bias, mean, variance, False, 0.0, eps, torch.backends.cudnn.enabled)

    @staticmethod
    def backward(ctx: Context, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        variance, weight = ctx.saved_tensors
        zero = torch.zeros_like(variance)
        use_cudnn = torch.backends.cudnn.enabled
        return torch.batch_norm(grad, weight, None, zero, variance, False, 0.0, ctx.eps, use_cudnn), *[None] * 5


class _AffineBatchNorm(nn.modules.batchnorm._BatchNorm):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        statistics = self.running_mean, self.running_var
        if self.training or statistics[0] is None or statistics[1] is None:
            return super().forward(input)
        self._check_input_dim(input)
        momentum = 0.0 if self.momentum is None else self.momentum
        return affine_batch_norm(input, *statistics, self.weight, self.bias, False, momentum, self.eps)


class AffineBatchNorm1d(_AffineBatchNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d` that saves nothing for backward in eval."""


class AffineBatchNorm2d(_AffineBatchNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d` that saves nothing for backward in eval."""


class AffineBatchNorm3d(_AffineBatchNorm, nn.BatchNorm3d):
    """`nn.BatchNorm3d` that saves nothing for backward in eval."""


_AFFINE: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: AffineBatchNorm1d,
    nn.BatchNorm2d: AffineBatchNorm2d,
    nn.BatchNorm3d: AffineBatchNorm3d,
}
_PLAIN = {affine: plain for plain, affine in _AFFINE.items()}


def set_affine_norms(root: nn.Module, affine: bool) -> None:
    """Let the batch norms among the modules of a copy of ours run as affine maps, or as they were."""
    table = _AFFINE if affine else _PLAIN
    for module in root.modules():
        if type(module) in table:
            module.__class__ = table[type(module)]
