"""Small models, each with one thing that a recording has to get right."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

T = torch.Tensor


class Calls(nn.Module):
    """A model that is one function of its input, with one linear layer."""

    def __init__(self, function: Callable[..., Any], width: int = 4) -> None:
        super().__init__()
        self.function, self.linear = function, nn.Linear(width, width)

    def forward(self, x: T) -> Any:
        return self.function(self, x)


class Minus(nn.Module):
    """Two inputs, of which one is taken from the other."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: T, y: T) -> T:
        result: T = self.linear(x) - y
        return result


class Attends(nn.Module):
    """`nn.MultiheadAttention`, with or without the weights it returns."""

    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.attend, self.need_weights = nn.MultiheadAttention(8, 2, batch_first=True), need_weights

    def forward(self, x: T) -> T:
        return self.attend(x, x, x, need_weights=self.need_weights)[0]


class Derives(nn.Module):
    """Everything that follows the input's dtype and device, and a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.offset = nn.Linear(4, 4), torch.arange(4.0)

    def forward(self, x: T) -> T:
        low = torch.finfo(x.dtype).min
        mask = torch.full((x.shape[0], 4), low, dtype=x.dtype, device=x.device)
        y = self.linear(x).float().to(self.linear.weight.dtype) + self.offset
        return torch.where(y > 0, y, mask / 2) + torch.arange(4, device=x.device)


class UpcastsHalf(nn.Module):
    """Other operations in another dtype, as T5's norm."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: T) -> T:
        y = self.linear(x)
        return y.to(torch.float32).sin() if y.dtype == torch.bfloat16 else y.sin()


class Doubled(torch.autograd.Function):
    """A function whose gradient is not what autograd would find."""

    @staticmethod
    def forward(ctx: Any, x: T) -> T:
        """Twice the input."""
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: T) -> T:  # type: ignore[override]
        """Five times the gradient."""
        return grad * 5


class Reversible(torch.autograd.Function):
    """A function that is given modules, as Reformer's is."""

    @staticmethod
    def forward(ctx: Any, x: T, layers: nn.ModuleList) -> T:
        """The layers, one after another."""
        for layer in layers:
            x = layer(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: T) -> tuple[T, None]:  # type: ignore[override]
        """The gradient as it is."""
        return grad, None


class ReversibleStack(nn.Module):
    """Layers that only such a function calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x: T) -> T:
        result: T = Reversible.apply(x, self.layers)
        return result


class Selects(nn.Module):
    """Python that depends on the values of a tensor."""

    def forward(self, x: T) -> T:
        return x[x.sum(-1) > 0] if x.sum() > 0 else x[x.sum(-1) <= 0]


class Scripted(nn.Module):
    """A scripted function, which no mode sees."""

    def forward(self, x: T) -> T:
        return SCRIPTED(x)


def _thrice(x: T) -> T:
    return x * 3 + 1


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # scripting is deprecated, and still met
    SCRIPTED = torch.jit.script(_thrice)


class Between(nn.Module):
    """A module between two layers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.before, self.inner, self.after = nn.Linear(4, 4), inner, nn.Linear(4, 4)

    def forward(self, x: T) -> T:
        return self.after(self.inner(self.before(x)))


class DropPath(nn.Module):
    """Stochastic depth, as everybody writes it."""

    def forward(self, x: T) -> T:
        return x * x.new_empty(x.shape[0], 1).bernoulli_(0.5) if self.training else x


class Follows(nn.Module):
    """Each way in which a model's mode decides."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.drop, self.path = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), DropPath()

    def forward(self, x: T) -> T:
        y = F.dropout(self.path(self.drop(self.norm(self.linear(x)))), 0.5, self.training)
        q = y[:, None, None]
        return F.scaled_dot_product_attention(q, q, q, dropout_p=0.4 if self.training else 0.0)


class Tokens(nn.Module):
    """Token ids of any length, an optional mask and a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear = nn.Embedding(11, 6), nn.Linear(6, 6)

    def forward(self, input_ids: T, attention_mask: T | None = None, scaled: bool = True) -> T:
        h = self.embed(input_ids)
        b, n, c = h.shape
        h = self.linear(h.reshape(b * n, c)).view(b, n, c)
        if scaled:
            h = h / n**0.5
        if attention_mask is not None:
            h = h * attention_mask[..., None]
        return torch.einsum("lm,bmc->blc", torch.ones(n, n).tril(), h)


class Stem(nn.Module):
    """A stride, and a product of sizes that is no polynomial of the image's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, x: T) -> T:
        y = self.conv(x)
        b, c, h, w = y.shape
        return y.reshape(b, c, h * w).transpose(1, 2)


class Window(nn.Module):
    """A length that must be even, as windows have it: other operations where it is not."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)

    def forward(self, ids: T) -> T:
        h = self.embed(ids)
        return F.pad(h, (0, 0, 0, 1)) if ids.shape[1] % 2 else h


class Steps(nn.Module):
    """Runs an operation for each step of a length."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear = nn.Embedding(11, 4), nn.Linear(4, 4)

    def forward(self, ids: T) -> T:
        h = self.embed(ids)
        state = torch.zeros_like(h[:, 0])
        for t in range(ids.shape[1]):
            state = self.linear(h[:, t] + state)
        return state


def checkpointed(reentrant: bool) -> nn.Module:
    """A model under activation checkpointing."""
    return Calls(lambda self, x: checkpoint(self.linear, x, use_reentrant=reentrant))
