"""Small models whose Python decides by sizes, values and properties; each line decides one thing."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

T = torch.Tensor
TABLE = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]
KEPT: dict[str, Any] = {}
SEEN: list[Any] = []


@functools.cache
def doubled(n: int) -> int:
    return 2 * n


class Tokens(nn.Module):
    """An embedding of token ids `(B, L)`, and what is done with it."""

    def __init__(self, then: Callable[[T], T]) -> None:
        super().__init__()
        self.e, self.then = nn.Embedding(50, 4), then

    def forward(self, ids: T) -> T:
        return self.then(self.e(ids))


class Keeps(nn.Module):
    """Keeps its sizes in a global, in a cache, in a list, on a class and on itself."""

    last: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(4, 4)

    @functools.cache  # noqa: B019 - what models do
    def grid(self, n: int) -> int:
        return n + 1

    def forward(self, x: T) -> T:
        n = x.shape[0]
        KEPT["shape"] = x.shape
        SEEN.append((n, [n]))
        Keeps.last = n
        return self.l(x) * doubled(n) + self.grid(n)


def pad_to_eight(h: T) -> T:
    return F.pad(h, (0, 0, 0, -h.shape[1] % 8))


def pad_and_cut(h: T) -> T:
    n = h.shape[1]
    padded = F.pad(h, (0, 0, 0, -n % 4))
    groups = padded.view(h.shape[0], padded.shape[1] // 4, 4, 4)
    return (groups - groups.mean(2, keepdim=True)).flatten(1, 2)[:, :n]


def half(h: T) -> T:
    n = int(h.shape[1] * 0.5)
    return h[:, :n].sum(1) * (h.shape[1] ** -0.5) + h[:, n:].mean(1)


def clamped(h: T) -> T:
    return h[:, : min(h.shape[1], 6)] * max(h.shape[0], 3)


def logs(h: T) -> T:
    return h * math.log2(h.shape[1]) + math.ceil(h.shape[1] / 3) + round(h.shape[1] / 7) + math.sqrt(h.shape[0])


def bits(h: T) -> T:
    return h * (h.shape[1] & 3) + (h.shape[1] >> 1) + (h.shape[0] ^ 1)


def by_length(h: T) -> T:
    return h * (3.0 if h.shape[1] > 10 else 1.0)


def chunks(h: T) -> T:
    return torch.cat([p - p.mean(1, keepdim=True) for p in h.split(8, 1)], 1)


def rows(h: T) -> T:
    return torch.stack([r.cumsum(0) for r in h], 0)


def looped(h: T) -> T:
    for i in range(h.shape[1] // 4):
        h = h + i
    return h


def table(h: T) -> T:
    return h * TABLE[h.shape[1] % len(TABLE)]


def named(h: T) -> T:
    return h * {8: 2.0, 9: 3.0}.get(h.shape[1], 1.0)


def text(h: T) -> T:
    return h * len(str(h.shape[1]))


def array(h: T) -> T:
    return h * float(np.sqrt(h.shape[1]))


def positions(h: T) -> T:
    return h * (3.0 if torch.arange(h.shape[1]).max() > 10 else 1.0)


def even(h: T) -> T:
    return h * (2.0 if h.shape[1] % 2 else 1.0)


def told(h: T) -> T:
    torch._assert(h.shape[1] > 0, f"expected tokens, got {h.shape}")
    return h * 2


def with_cache(f: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that keeps a function's cache in its closure, as transformers has one."""
    cached = functools.lru_cache(maxsize=1)(f)

    @functools.wraps(f)
    def wrapper(*args: Any) -> Any:
        return cached(*args)

    return wrapper


class Caches(nn.Module):
    """Functions of its sizes with a cache, in all the places where a class and an object keep functions."""

    def __init__(self) -> None:
        super().__init__()
        self.own = functools.lru_cache(abs)

    @staticmethod
    @with_cache
    def positions(shape: torch.Size) -> T:
        return torch.arange(shape[1]).expand(shape[0], -1).float()

    @staticmethod
    @functools.cache
    def half(n: int) -> int:
        return n // 2

    @classmethod
    @functools.cache
    def third(cls, n: int) -> int:
        return n // 3

    def forward(self, x: T) -> T:
        batch, length = x.shape[:2]
        return x + self.positions(x.shape) + self.half(batch) + self.third(length) + self.own(batch - length)


def quarter(n: int) -> int:
    return n // 4


@functools.cache
@with_cache
def fifth(n: int) -> int:
    return n // 5


class OfItsModule(nn.Module):
    """Calls functions of its module, which may have caches."""

    def forward(self, x: T) -> T:
        return x + quarter(x.shape[0]) + fifth(x.shape[1])


class OneQuery(nn.Module):
    """Causal attention that says so for more than one query only."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)

    def forward(self, x: T) -> T:
        q, k, v = self.qkv(x)[:, None].chunk(3, dim=-1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=x.shape[1] > 1)


class Pooled(nn.Module):
    """Reads a size behind a stride, and expands positions where the batch is not theirs."""

    def forward(self, x: T) -> T:
        h = F.avg_pool1d(x, 2, ceil_mode=True)
        positions = torch.arange(h.shape[2])[None]
        if x.shape[0] != positions.shape[0]:
            positions = positions.expand(x.shape[0], -1)
        return h.reshape(x.shape[0], h.shape[2] * h.shape[1]) + positions.repeat(1, h.shape[1])
