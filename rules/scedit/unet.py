"""Two small U-Nets, for `skip.yaml`: the classic one, and one with attention as diffusion models have it.

utcompile explain -m rules/scedit/unet.py:classic -r scedit/skip --input-size 3,32,32
"""

from __future__ import annotations

import torch
from torch import nn


def classic() -> nn.Module:
    """Two convolutions per level, pooling down, transposed convolutions up; the skip is first in each `cat`."""
    return Classic(8, levels=3)


def diffusion() -> nn.Module:
    """Residual blocks with group norm, attention in the middle, interpolation up; the skip is last."""
    return Diffusion(8, levels=2)


class Classic(nn.Module):
    """`(B, 3, H, W)` -> `(B, 1, H, W)`; H and W are multiples of `2 ** levels`."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(levels + 1)]
        self.down = nn.ModuleList(_twice(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1]))
        self.after = nn.ModuleList(_twice(2 * w, w) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for i, level in enumerate(self.down):
            x = level(x if i == 0 else nn.functional.max_pool2d(x, 2))
            skips.append(x)
        x = skips.pop()
        for up, after in zip(self.up, self.after, strict=True):
            x = after(torch.cat((skips.pop(), up(x)), 1))
        return self.head(x)


class Diffusion(nn.Module):
    """`(B, 3, H, W)` -> the same; H and W are multiples of `2 ** levels`."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList(Residual(width, width) for _ in range(levels))
        self.shrink = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(levels))
        self.attend = nn.MultiheadAttention(width, 2, batch_first=True)
        self.up = nn.ModuleList(Residual(2 * width, width) for _ in range(levels))
        self.head = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, skips = self.stem(x), []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            h = block(h)
            skips.append(h)
            h = shrink(h)
        tokens = h.flatten(2).mT
        h = h + self.attend(tokens, tokens, tokens, need_weights=False)[0].mT.unflatten(-1, h.shape[2:])
        for block in self.up:
            h = block(torch.cat((nn.functional.interpolate(h, scale_factor=2), skips.pop()), 1))
        return self.head(h)


class Residual(nn.Module):
    """`shortcut(x) + conv(silu(norm(x)))`."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(2, channels), nn.Conv2d(channels, out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shortcut(x) + self.conv(nn.functional.silu(self.norm(x)))


def _twice(channels: int, out: int) -> nn.Module:
    return nn.Sequential(
        *(layer for c in (channels, out) for layer in (nn.Conv2d(c, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()))
    )
