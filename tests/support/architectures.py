"""The usual architectures in plain torch, as small as they can be: no library's release changes their graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, WORDS, CLASSES = 8, 2, 11, 3


def _cbr(i: int, o: int, k: int, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = nn.ReLU) -> nn.Module:
    layers = [nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, *([act()] if act else []))


class Residual(nn.Module):
    """Two convolutions beside a strided shortcut (ResNet)."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _cbr(i, o, 3, stride=2), _cbr(o, o, 3, act=None)
        self.shortcut = _cbr(i, o, 1, stride=2, act=None)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = _cbr(3, WIDTH, 3), Residual(WIDTH, 12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.head(F.adaptive_avg_pool2d(self.block(self.stem(image)), 1).flatten(1))
        return out


class Inverted(nn.Module):
    """Wide in the middle, narrow at both ends (MobileNetV2)."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = _cbr(WIDTH, 16, 1, act=nn.ReLU6)
        self.depthwise = _cbr(16, 16, 3, groups=16, act=nn.ReLU6)
        self.project = _cbr(16, WIDTH, 1, act=None)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.project(self.depthwise(self.expand(x)))
        return out


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = _cbr(3, WIDTH, 3, stride=2), Inverted(), nn.Linear(WIDTH, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.head(self.block(self.stem(image)).mean((2, 3)))
        return out


class Attention(nn.Module):
    """Queries, keys and values of one linear, and an optional bias of the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(b, n, c))
        return out


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """A block with its norms first (ViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.mlp = Attention(), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches, a class token, positions."""

    def __init__(self, depth: int = 1) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Parameter(torch.randn(1, 5, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        out: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return out


class ShiftedBlock(nn.Module):
    """Attention in shifted windows of 2×2 with a bias for each pair of positions (Swin)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.mlp = Attention(), Mlp()
        self.bias = nn.Parameter(torch.randn(1, HEADS, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        y = torch.roll(self.norm1(x), (-1, -1), (1, 2))
        y = y.view(b, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(-1, 4, c)
        y = self.attn(y, self.bias)
        y = y.view(-1, h // 2, w // 2, 2, 2, c).transpose(2, 3).reshape(b, h, w, c)
        x = x + torch.roll(y, (1, 1), (1, 2))
        return x + self.mlp(self.norm2(x))


class Swin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.block = nn.Conv2d(3, WIDTH, 4, 4), ShiftedBlock()
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.block(self.patches(image).permute(0, 2, 3, 1))
        out: Tensor = self.head(self.norm(x).mean((1, 2)))
        return out


def _heads(x: Tensor, heads: int = HEADS) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class BertLayer(nn.Module):
    """A layer with its norms last; attention is spelled out."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.dense = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm1, self.mlp, self.norm2 = nn.LayerNorm(WIDTH), Mlp(), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (_heads(layer(x)) for layer in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5 + mask
        x = self.norm1(x + self.dense((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))
        out: Tensor = self.norm2(x + self.mlp(x))
        return out


class Bert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(16, WIDTH)
        self.norm, self.layer = nn.LayerNorm(WIDTH), BertLayer()
        self.pooler, self.classifier = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        x = self.layer(self.norm(x), (1 - mask[:, None, None, :]) * -1e4)
        out: Tensor = self.classifier(torch.tanh(self.pooler(x[:, 0])))
        return out


class Transposed(nn.Module):
    """A linear whose weight has its inputs first (GPT-2's `Conv1D`)."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(i, o) / i**0.5), nn.Parameter(torch.zeros(o))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], self.weight.shape[1])


class GPT2Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_attn, self.c_proj = Transposed(WIDTH, 3 * WIDTH), Transposed(WIDTH, WIDTH)
        self.c_fc, self.c_out = Transposed(WIDTH, 16), Transposed(16, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (_heads(t) for t in self.c_attn(self.ln_1(x)).split(WIDTH, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).flatten(2))
        return x + self.c_out(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class GPT2(nn.Module):
    """Its words and its last layer share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(WORDS, WIDTH), nn.Embedding(16, WIDTH)
        self.block, self.ln_f = GPT2Block(), nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, WORDS, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        out: Tensor = self.lm_head(self.ln_f(self.block(x)))
        return out


class RMSNorm(nn.Module):
    """Spelled out, as Llama has it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class LlamaLayer(nn.Module):
    """Rotated queries and keys, one head of keys and values for two of queries, a gated feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(), RMSNorm()
        self.q, self.o = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.k, self.v = nn.Linear(WIDTH, WIDTH // HEADS, bias=False), nn.Linear(WIDTH, WIDTH // HEADS, bias=False)
        self.gate, self.up = nn.Linear(WIDTH, 16, bias=False), nn.Linear(WIDTH, 16, bias=False)
        self.down = nn.Linear(16, WIDTH, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        n = self.norm1(x)
        q, k, v = _heads(self.q(n)), _heads(self.k(n), 1), _heads(self.v(n), 1)
        q, k = (t * cos + torch.cat([-t[..., 2:], t[..., :2]], -1) * sin for t in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        n = self.norm2(x)
        out: Tensor = x + self.down(F.silu(self.gate(n)) * self.up(n))
        return out


class Llama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer, self.norm = nn.Embedding(WORDS, WIDTH), LlamaLayer(), RMSNorm()
        self.lm_head = nn.Linear(WIDTH, WORDS, bias=False)
        self.register_buffer("rates", torch.tensor([1.0, 0.1]), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        angles = torch.arange(ids.shape[1], device=ids.device)[:, None] * self.rates
        angles = torch.cat([angles, angles], -1)
        out: Tensor = self.lm_head(self.norm(self.layer(self.embed(ids), angles.cos(), angles.sin())))
        return out


class UNet(nn.Module):
    """Two levels with a skip connection; no classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = _cbr(3, WIDTH, 3), _cbr(WIDTH, 16, 3)
        self.up, self.join, self.out = nn.ConvTranspose2d(16, WIDTH, 2, 2), _cbr(16, WIDTH, 3), nn.Conv2d(WIDTH, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        first = self.down1(image)
        second = self.up(self.down2(F.max_pool2d(first, 2)))
        out: Tensor = self.out(self.join(torch.cat([first, second], 1)))
        return out


class Toy(nn.Module):
    """A layer that runs twice, a weight that a buffer scales, a residual whose branch has no activation."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.head = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.register_buffer("mask", torch.ones(WIDTH, WIDTH))

    def forward(self, x: Tensor, shift: Tensor) -> dict[str, Tensor]:
        h = torch.relu(self.inner(x))
        h = h + self.outer(self.outer(h)) * self.scale
        masked = F.linear(h, self.outer.weight * self.mask)
        return {"classes": self.head(masked + shift), "features": h}


def images(size: int = 8) -> dict[str, Tensor]:
    return {"image": torch.randn(2, 3, size, size)}


def words(**more: Tensor) -> dict[str, Tensor]:
    return {"ids": torch.randint(0, WORDS, (2, 5)), **more}


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, Any]]]] = {
    "convnet": (ConvNet, images),
    "mobilenet": (MobileNet, images),
    "vit": (ViT, images),
    "vit of two blocks": (lambda: ViT(2), images),
    "swin": (Swin, lambda: images(16)),
    "bert": (Bert, lambda: words(mask=torch.tensor([[1.0] * 5, [1.0] * 3 + [0.0] * 2]))),
    "gpt2": (GPT2, words),
    "llama": (Llama, words),
    "unet": (UNet, images),
    "toy": (Toy, lambda: {"x": torch.randn(2, 6), "shift": torch.randn(2, WIDTH)}),
}


def make(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """An architecture in eval and its example inputs, the same in every call."""
    torch.manual_seed(0)
    build, inputs = ARCHITECTURES[name]
    return build().eval(), inputs()
