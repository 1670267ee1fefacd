"""Small models with sizes that vary, for tests of ONNX files."""

from __future__ import annotations

import torch
from torch import Tensor, nn

IDS = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(0))
MASK = torch.ones(2, 6, dtype=torch.long)
MASK[1, 4:] = 0
IMAGES = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))


class Texts(nn.Module):
    """Embeds tokens, and pools them by a mask; at most 20 tokens and an even number of them."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places = nn.Embedding(50, 16), nn.Parameter(torch.randn(20, 16))
        self.norm, self.up, self.act, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)
        self.head = nn.Linear(16, classes)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places[: ids.shape[1]]
        if ids.shape[1] % 2:
            raise ValueError("an odd length")
        x = x + self.down(self.act(self.up(self.norm(x))))
        weights = mask.to(x.dtype)[..., None]
        return self.head((x * weights).sum(1) / weights.sum(1))


class Pixels(nn.Module):
    """Two convolutions around a pool and a resize; one channel map per class."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.pool, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        z = nn.functional.interpolate(self.pool(y), size=y.shape[2:])
        return self.head(self.b(torch.cat([y, z], 1)).relu().mean((2, 3)))


class SequenceFirst(nn.Module):
    """The batch is dimension 1, and at least 2."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.shape[1] >= 2 else self.linear(x)[:1]
