"""Models whose inputs are more than images and words: masks, lengths, choices, grids, boxes, containers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class Base(nn.Module):
    """A table and layers."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Embedding(30, 16)
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.h = nn.Linear(16, 3)


class Attend(Base):
    """A mask in which True keeps: nothing kept is nan."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.e(ids)
        scores = (self.q(x) @ self.k(x).mT / 4).masked_fill(~mask[:, None].bool(), float("-inf"))
        return self.h(scores.softmax(-1) @ self.v(x))


class Pool(Base):
    """A mean over a mask."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        kept = mask[..., None].to(self.e.weight.dtype)
        return self.h((self.v(self.e(ids)) * kept).sum(1) / kept.sum(1))


class Rate(Base):
    """A sum divided by a length."""

    def forward(self, ids: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        return self.h(self.v(self.e(ids)).sum(1) / n[:, None])


class Choose(Base):
    """A boolean that chooses between two layers."""

    def forward(self, x: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        return self.h(torch.where(which[:, None], self.q(x), self.k(x).relu()))


class Patches(Base):
    """Patches of several images in a row; `grid_thw` says how many each image has."""

    def forward(self, patches: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        sizes = grid_thw.prod(-1)
        first = sizes.cumsum(0) - sizes
        at = torch.arange(patches.shape[0])[:, None]
        mine = ((at >= first) & (at < first + sizes)).to(patches.dtype)  # (patches, images)
        return self.h((mine.T @ self.v(patches)) / mine.sum(0)[:, None])


class Grid(Base):
    """Images of which `grid_thw` says how many of the positions count."""

    def forward(self, patches: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        counted = torch.arange(patches.shape[1], device=patches.device) < grid_thw.prod(-1, keepdim=True)
        return self.h(self.v(patches * counted[..., None]).sum(1) / grid_thw.prod(-1, keepdim=True))


class Boxes(Base):
    """A feature of each box: its first number is the image that it lies in."""

    def forward(self, images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        chosen = images[boxes[:, 0].long()]
        return self.h(self.v(chosen) * boxes[:, 1:].mean(1, keepdim=True))


class Nested(Base):
    """Inputs in a dict and a tuple."""

    def forward(self, inputs: Mapping[str, Any], pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return self.h(self.v(self.e(inputs["ids"]).mean(1)) * pair[0] / pair[1].sum(1, keepdim=True))


IDS = torch.tensor([[3, 7, 7, 1, 9, 0], [4, 29, 2, 8, 0, 0]])
MASK = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
