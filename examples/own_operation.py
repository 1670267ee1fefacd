"""A custom kernel that rules know: after one call, it is an activation in patterns, and channels pass through it.

python examples/own_operation.py
"""

import math

import torch
from torch import nn

import utcompile as utc


@torch.library.custom_op("examples::scaled_relu", mutates_args=())
def scaled_relu(x: torch.Tensor, scale: float) -> torch.Tensor:
    """The result of a fused kernel: `scale * relu(x)`."""
    return torch.relu(x) * scale


@scaled_relu.register_fake
def _(x: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.empty_like(x)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
    return grad * (ctx.positive * ctx.scale), None


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[torch.Tensor, float], output: torch.Tensor) -> None:
    ctx.positive, ctx.scale = inputs[0] > 0, inputs[1]


scaled_relu.register_autograd(_backward, setup_context=_keep)

utc.register_operation(
    "scaled_relu",
    "scale * max(x, 0)",
    signature="x, scale",
    spellings=["torch.ops.examples.scaled_relu"],
    traits=["activation", "homogeneous", "positive"],
    axes="keep",
    flops=lambda read, made: 2 * math.prod(made),
)

RULES = """
version: 1
name: behind_the_kernel
rules:
  - name: ffn
    match: |
      h = linear(x)
      a = scaled_relu(h, scale=2.0)
      y = linear(a)
    insert: {sequential: a, tuner: {kind: adapter, dim: 4, scale: channel}}
"""


class Block(nn.Module):
    """A feedforward whose activation is the kernel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(scaled_relu(self.up(self.norm(x)), 2.0))


def main() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 5, 8)
    captured = utc.capture(nn.Sequential(Block(8), Block(8)).eval(), tokens)
    print(utc.match(captured, RULES))  # by its name
    plan = utc.match(captured, "u_tuning/single_ffn")  # as an activation, in the named pattern `ffn`
    print(plan)
    tuned = plan.apply()
    tuned(tokens).sum().backward()


if __name__ == "__main__":
    main()
