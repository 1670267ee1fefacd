"""Models whose Python must stay: losses, loops, choices by value; and parts of them that can be tuned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

RULES = """
version: 1
name: lora-on-all
vars: {r: 2}
rules:
  - {name: linear, match: {op: linear}, insert: {weight: h, tuner: {kind: lora, r: $r}}, expect: {optional: true}}
  - {name: conv, match: {op: conv2d}, insert: {weight: h, tuner: {kind: lora, r: $r}}, expect: {optional: true}}
"""


def body() -> nn.Sequential:
    """Eight channels at half the size."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1)
    )


class Finder(nn.Module):
    """Finds bright places: takes a list of images, has losses in training, and chooses by values in eval."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = body()
        self.head = nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 1, 1))

    def forward(
        self, images: list[torch.Tensor], masks: list[torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor] | list[torch.Tensor]:
        scores = self.head(self.backbone(torch.stack(images)))[:, 0]
        if self.training:
            assert masks is not None
            return {"loss": F.binary_cross_entropy_with_logits(scores, torch.stack(masks))}
        return [torch.nonzero(s > s.mean()) for s in scores]


class Looped(nn.Module):
    """Calls one part several times, at several sizes, in a loop that depends on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 4, 3, padding=1))
        self.idle = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while x.shape[-1] > 4 and x.abs().sum() > 0:
            x = F.avg_pool2d(x + self.step(x), 2)
        return x


class Blocks(nn.Module):
    """Residual blocks, and a loop over them: `stages` is never called itself."""

    def __init__(self, depth: int = 3, width: int = 8) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = stage(x)
        if bool(x.mean() > 100):
            return x
        result: torch.Tensor = self.head(x.mean(1))
        return result


class Block(nn.Module):
    """A norm, a hidden layer and the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 16), nn.Linear(16, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.down(F.gelu(self.up(self.norm(x))))
        return result


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Embedding(11, 8), Block(8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.block(self.embed(ids)))
        return result


class Odd(nn.Module):
    """Parts that no one graph can be."""

    def __init__(self) -> None:
        super().__init__()
        self.two, self.text, self.remembers, self.read = Two(), Text(), Remembers(), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        memory = Memory()
        said = self.text(x)
        y = self.two(x, twice=False) + self.two(x, twice=True) + len(said)
        y = self.remembers(y, memory) + self.remembers(y, memory)
        result: torch.Tensor = self.read(y) @ self.read.weight
        return result


class Two(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)

    def forward(self, x: torch.Tensor, twice: bool = False) -> torch.Tensor:  # type: ignore[override]
        y = super().forward(x)
        return y + y if twice else y


class Text(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)

    def forward(self, x: torch.Tensor) -> object:  # type: ignore[override]
        return Said(super().forward(x).sum().item())


class Said(str):
    """A text that a part returns."""

    def __new__(cls, value: float) -> Said:
        return super().__new__(cls, "high" if value > 0 else "low")


class Memory:
    """A cache."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []


class Remembers(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)

    def forward(self, x: torch.Tensor, memory: Memory) -> torch.Tensor:  # type: ignore[override]
        memory.seen.append(super().forward(x))
        return torch.stack(memory.seen).sum(0)
