"""Toys of `test_which_weights.py`: linears in every spelling, gated ffns, heads of language models, writes in place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

T = torch.Tensor


class Spelled(nn.Module):
    """One linear of 6 to 12, packed of three parts, in one spelling."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        turned = how in ("x @ W", "addmm")
        self.w = nn.Parameter(torch.randn(6, 12) if turned else torch.randn(12, 6))
        self.b = nn.Parameter(torch.randn(12))
        self.fixed: T
        self.register_buffer("fixed", torch.randn(6, 6))
        self.out = nn.Linear(4, 3)

    def forward(self, x: T) -> T:
        x = x @ self.fixed  # no linear: a table that the model keeps
        q, k, v = self.packed(x).split(4, -1)
        return self.out(q.tanh() * k + v)

    def packed(self, x: T) -> T:
        if self.how == "addmm":
            return torch.addmm(self.b, x.reshape(-1, 6), self.w).reshape(*x.shape[:-1], 12)
        if self.how == "addmm, turned":
            return torch.addmm(self.b, x.reshape(-1, 6), self.w.t()).reshape(*x.shape[:-1], 12)
        if self.how == "x @ W":
            return x @ self.w + self.b
        if self.how == "x @ W.T":
            return torch.matmul(x, self.w.T) + self.b
        if self.how == "W @ x":
            return (self.w @ x.mT).mT + self.b
        return F.linear(x, self.w, self.b)


SPELLINGS = ("linear", "addmm", "addmm, turned", "x @ W", "x @ W.T", "W @ x")


class Gated(nn.Module):
    """Two residual branches: a gated ffn, in two layers or one packed, and a plain one where `plain`."""

    def __init__(self, packed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.packed = nn.LayerNorm(8), packed
        self.up, self.gate = nn.Linear(8, 24 if packed else 12), nn.Linear(8, 12)
        self.down, self.head = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: T) -> T:
        n = self.norm(x)
        h, g = self.up(n).chunk(2, -1) if self.packed else (self.up(n), self.gate(n))
        return self.head((x + self.down(F.silu(h) * g)).mean(1))


class Tokens(nn.Module):
    """Words, positions and types are summed; a head of some classes, which may be tied to the words."""

    def __init__(self, classes: int = 40, *, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places, self.types = nn.Embedding(40, 8), nn.Embedding(16, 8), nn.Embedding(2, 8)
        self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, classes, bias=not tied)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, ids: T, types: T) -> T:
        places = self.places(torch.arange(ids.shape[1], device=ids.device))
        x = F.layer_norm(self.words(ids) + self.types(types) + places, (8,))
        return self.head(x + self.layer(x).relu())


class Written(nn.Module):
    """A linear whose result, or input, is written to in place afterwards."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.layer, self.head = how, nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: T, mask: T) -> T:
        x = x * 2
        y = self.layer(x)
        if self.how == "mask":
            y[~mask] = 0
        elif self.how == "slice":
            y[:, 0] = 0
        elif self.how == "part":
            y[:, 1:].clamp_(min=0)
        elif self.how == "input":
            x[:, 0] = 1
            y = y + x
        return self.head(y.tanh())


class Sources(nn.Module):
    """Attention whose queries, keys and values come from one to three values, of other widths."""

    def __init__(self, module: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True) if module else None
        self.q, self.k, self.v, self.o = nn.Linear(8, 8), nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: T, z: T, w: T) -> T:
        if self.attn is not None:
            return self.head((x + self.attn(x, z, w, need_weights=False)[0]).mean(1))
        q, k, v = (p(t).unflatten(-1, (2, 4)).transpose(1, 2) for p, t in ((self.q, x), (self.k, z), (self.v, w)))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head((x + self.o(y)).mean(1))
