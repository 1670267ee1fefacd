"""Small versions of architectures that the toys of other tests leave out, as their papers build them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

T = torch.Tensor


# --- Restormer (arXiv 2111.09881): attention over channels, pixel (un)shuffle, padded to multiples of 8 ---------------


class TransposedAttention(nn.Module):
    """Attention whose scores are channels × channels, so that it costs the same per pixel at every size."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.mix = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim, bias=False)
        self.out = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: T) -> T:
        b, c, h, w = x.shape
        q, k, v = (t.reshape(b, self.heads, c // self.heads, h * w) for t in self.mix(self.qkv(x)).chunk(3, 1))
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        return self.out((scores.softmax(-1) @ v).reshape(b, c, h, w))


class GatedFeedForward(nn.Module):
    """Two depthwise branches, one gates the other."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(dim, 4 * dim, 1, bias=False)
        self.mix = nn.Conv2d(4 * dim, 4 * dim, 3, padding=1, groups=4 * dim, bias=False)
        self.out = nn.Conv2d(2 * dim, dim, 1, bias=False)

    def forward(self, x: T) -> T:
        a, b = self.mix(self.wide(x)).chunk(2, 1)
        return self.out(F.gelu(a) * b)


class ChannelNorm(nn.Module):
    """A layer norm over channels: the image is flattened to (B, H·W, C) and back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: T) -> T:
        h, w = x.shape[-2:]
        flat = self.norm(x.flatten(2).transpose(1, 2))
        return flat.transpose(1, 2).reshape(x.shape[0], -1, h, w)


class RestormerBlock(nn.Module):
    """Norm, attention, norm, feed-forward, each added."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = ChannelNorm(dim), TransposedAttention(dim, heads)
        self.norm2, self.ffn = ChannelNorm(dim), GatedFeedForward(dim)

    def forward(self, x: T) -> T:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class Restorer(nn.Module):
    """A U of two levels; images of any size are padded to multiples of 8 by reflection, and cropped again."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, dim, 3, padding=1)
        self.down = nn.Sequential(nn.Conv2d(dim, dim // 2, 3, padding=1), nn.PixelUnshuffle(2))
        self.up = nn.Sequential(nn.Conv2d(2 * dim, 4 * dim, 3, padding=1), nn.PixelShuffle(2))
        self.encoder, self.middle = RestormerBlock(dim, 1), RestormerBlock(2 * dim, 2)
        self.reduce = nn.Conv2d(2 * dim, dim, 1)
        self.decoder, self.out = RestormerBlock(dim, 1), nn.Conv2d(dim, 3, 3, padding=1)

    def forward(self, image: T) -> T:
        h, w = image.shape[2:]
        wide, high = math.ceil(w / 8) * 8 - w, (8 - h % 8) % 8
        x = F.pad(image, (0, wide, 0, high), mode="reflect")
        skip = self.encoder(self.embed(x))
        y = self.up(self.middle(self.down(skip)))
        y = self.decoder(self.reduce(torch.cat([y, skip], 1)))
        return (self.out(y) + x)[:, :, :h, :w]


# --- RWKV (arXiv 2305.13048): a recurrence over time in place of attention ---------------------------------------------


class TimeMix(nn.Module):
    """The weighted sum over the past, one step after another, with the running maximum that keeps it finite."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.decay, self.first = nn.Parameter(torch.rand(dim)), nn.Parameter(torch.rand(dim))
        self.mix = nn.Parameter(torch.rand(3, dim))
        self.key, self.value, self.gate, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def forward(self, x: T) -> T:
        before = F.pad(x, (0, 0, 1, -1))
        k, v, r = (
            layer(x * m + before * (1 - m))
            for layer, m in zip((self.key, self.value, self.gate), self.mix, strict=True)
        )
        total, weight = torch.zeros_like(k[:, 0]), torch.zeros_like(k[:, 0])
        top, outs = torch.full_like(k[:, 0], -1e38), []
        for t in range(x.shape[1]):
            here = k[:, t] + self.first
            most = torch.maximum(top, here)
            a, b = (top - most).exp(), (here - most).exp()
            outs.append((a * total + b * v[:, t]) / (a * weight + b))
            most = torch.maximum(top - self.decay.exp(), k[:, t])
            a, b = (top - self.decay.exp() - most).exp(), (k[:, t] - most).exp()
            total, weight, top = a * total + b * v[:, t], a * weight + b, most
        return self.out(r.sigmoid() * torch.stack(outs, 1))


class Rwkv(nn.Module):
    """Two blocks of time mixing over token ids."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.blocks = nn.ModuleList(TimeMix(dim) for _ in range(2))
        self.head = nn.Linear(dim, 20, bias=False)

    def forward(self, ids: T) -> T:
        x = self.embed(ids)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return self.head(x)


# --- Conformer (arXiv 2005.08100): relative positions, and convolutions between two half feed-forwards -----------------


class RelativeAttention(nn.Module):
    """Attention with Transformer-XL's relative positions: a table of 2L - 1 sines, shifted into place by a reshape."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, dim // heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.positions = nn.Linear(dim, dim, bias=False)
        self.u, self.v = nn.Parameter(torch.rand(heads, dim // heads)), nn.Parameter(torch.rand(heads, dim // heads))

    def _table(self, length: int, like: T) -> T:
        steps = torch.arange(length - 1, -length, -1, dtype=like.dtype, device=like.device)
        dim = self.heads * self.width
        rates = torch.exp(torch.arange(0, dim, 2, device=like.device, dtype=like.dtype) * (-math.log(1e4) / dim))
        angles = steps[:, None] * rates
        return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)

    def forward(self, x: T, mask: T | None) -> T:
        b, length, _ = x.shape
        q, k, v = (t.view(b, length, self.heads, self.width) for t in self.qkv(x).chunk(3, -1))
        p = self.positions(self._table(length, x)).view(2 * length - 1, self.heads, self.width)
        content = torch.einsum("bihd,bjhd->bhij", q + self.u, k)
        shifted = torch.einsum("bihd,phd->bhip", q + self.v, p)
        shifted = F.pad(shifted, (1, 0)).view(b, self.heads, 2 * length, length)[:, :, 1:]
        shifted = shifted.reshape(b, self.heads, length, 2 * length - 1)[..., :length]
        scores = (content + shifted) / math.sqrt(self.width)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], -1e4)
        return self.out(torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).reshape(b, length, -1))


class ConvModule(nn.Module):
    """Norm, pointwise with GLU, depthwise, batch norm, SiLU, pointwise."""

    def __init__(self, dim: int, kernel: int = 5) -> None:
        super().__init__()
        self.norm, self.bn = nn.LayerNorm(dim), nn.BatchNorm1d(dim)
        self.wide, self.out = nn.Conv1d(dim, 2 * dim, 1), nn.Conv1d(dim, dim, 1)
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)

    def forward(self, x: T, mask: T | None) -> T:
        y = self.norm(x).transpose(1, 2)
        if mask is not None:
            y = y.masked_fill(~mask[:, None], 0.0)
        y = self.bn(self.depthwise(F.glu(self.wide(y), dim=1)))
        return self.out(F.silu(y)).transpose(1, 2)


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, norm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.first, self.last = (
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim))
            for _ in range(2)
        )
        self.norm, self.attn = nn.LayerNorm(dim), RelativeAttention(dim, heads)
        self.conv, self.end = ConvModule(dim), nn.LayerNorm(dim)

    def forward(self, x: T, mask: T | None) -> T:
        x = x + 0.5 * self.first(x)
        x = x + self.attn(self.norm(x), mask)
        x = x + self.conv(x, mask)
        return self.end(x + 0.5 * self.last(x))


class Conformer(nn.Module):
    """Features (B, T, 16) subsampled by 4, with lengths; logits per frame, and the lengths of the frames."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.sub = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU())
        self.proj = nn.Linear(4 * 3, dim)
        self.blocks = nn.ModuleList(ConformerBlock(dim, 2) for _ in range(2))
        self.head = nn.Linear(dim, 10)

    def forward(self, features: T, lengths: T | None = None) -> tuple[T, T | None]:
        y = self.sub(features[:, None])
        b, c, t, f = y.shape
        x = self.proj(y.transpose(1, 2).reshape(b, t, c * f))
        mask = None
        if lengths is not None:
            lengths = ((lengths - 1) // 2 - 1) // 2
            mask = torch.arange(t, device=x.device) < lengths[:, None]
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x), lengths


# --- a graph network: messages along edges, means per graph ------------------------------------------------------------


class GraphNet(nn.Module):
    """Two rounds of messages with degrees and attention per edge, then a mean per graph."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.enter = nn.Linear(4, dim)
        self.message, self.score = nn.Linear(2 * dim, dim), nn.Linear(2 * dim, 1)
        self.update, self.head = nn.GRUCell(dim, dim), nn.Linear(dim, 3)

    def forward(self, x: T, edge_index: T, graph: T) -> T:
        source, target = edge_index
        h = self.enter(x).relu()
        for _ in range(2):
            pair = torch.cat([h[source], h[target]], -1)
            weight = self.score(pair).squeeze(-1).exp()
            total = torch.zeros(h.shape[0], device=h.device, dtype=h.dtype).index_add(0, target, weight)
            messages = self.message(pair).relu() * (weight / total[target])[:, None]
            h = self.update(torch.zeros_like(h).index_add(0, target, messages), h)
        degree = torch.zeros(h.shape[0], device=h.device, dtype=h.dtype).index_add(0, target, torch.ones_like(weight))
        h = h * (degree + 1).log()[:, None]
        sums = h.new_zeros(x.shape[0], h.shape[1]).index_add(0, graph, h)
        return self.head(sums)
