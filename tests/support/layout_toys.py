"""Small models, one for each layout in which a value may stand; `layer` is where tuners go."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class Layout(nn.Module):
    """A stem that makes the layout, the layer, and a head over the mean of the positions."""

    def __init__(self, stem: nn.Module, layer: nn.Module, channels: int, axis: int = -1) -> None:
        super().__init__()
        self.stem, self.layer, self.axis = stem, layer, axis
        self.act, self.head = nn.GELU(), nn.Linear(channels, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.layer(self.stem(x)))
        return self.head(x.movedim(self.axis, -1).flatten(1, -2).mean(1) if x.dim() > 2 else x)


class Patches(nn.Module):
    """An image as tokens, with a class token in front of them or without."""

    def __init__(self, with_class: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, 8)) if with_class else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).flatten(2).mT
        return x if self.cls is None else torch.cat((self.cls.expand(x.shape[0], -1, -1), x), 1)


class Windows(nn.Module):
    """An image as windows of 2×2 positions, `(B·4, 4, C)`, as Swin's attention reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        x = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, 4, c)


class Windowed(Layout):
    """Back from windows to positions before the head."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.layer(self.stem(x)))
        return self.head(x.reshape(-1, 16, x.shape[-1]).mean(1))


class Moved(nn.Module):
    """A convolution whose result is `(B, H, W, C)`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).permute(0, 2, 3, 1)


class Last(nn.Module):
    """Channels to the end."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1)


IMAGE = (2, 3, 16, 16)
LAYOUTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "NCHW": (lambda: Layout(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 3, padding=1), 8, 1), IMAGE),
    "NCHW strided": (lambda: Layout(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 6, 3, 2, 1), 6, 1), IMAGE),
    "NHWC": (lambda: Layout(nn.Sequential(nn.Conv2d(3, 8, 4, 4), Last()), nn.Linear(8, 6), 6), IMAGE),
    "NHWC same": (lambda: Layout(nn.Sequential(nn.Conv2d(3, 8, 4, 4), Last()), nn.Linear(8, 8), 8), IMAGE),
    "NCHW to NHWC": (lambda: Layout(nn.Conv2d(3, 8, 4, 4), Moved(), 8), IMAGE),
    "tokens": (lambda: Layout(Patches(False), nn.Linear(8, 8), 8), IMAGE),
    "class token": (lambda: Layout(Patches(True), nn.Linear(8, 8), 8), IMAGE),
    "windows": (lambda: Windowed(Windows(), nn.Linear(8, 8), 8), IMAGE),
    "signal": (lambda: Layout(nn.Conv1d(3, 8, 2, 2), nn.Conv1d(8, 8, 3, padding=1), 8, 1), (2, 3, 12)),
    "volume": (lambda: Layout(nn.Conv3d(3, 8, 2, 2), nn.Conv3d(8, 8, 1), 8, 1), (2, 3, 8, 6, 8)),
    "vector": (lambda: Layout(nn.Linear(3, 8), nn.Linear(8, 8), 8), (4, 3)),
    "norm": (lambda: Layout(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), 8, 1), IMAGE),
}
