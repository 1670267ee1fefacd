"""A toy model and toy data: which of four quadrants of a noisy grey image is bright."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from utcompile.train import Data, load_data

SMALL: dict[str, Any] = {"input_size": (3, 12, 12), "interpolation": "bilinear"}


def images(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.integers(0, 100, (count, 8, 8)).astype(np.uint8)
    y = np.arange(count) % 4
    for image, label in zip(x, y, strict=True):
        row, column = divmod(label, 2)
        image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 100
    return x, y


def toy_data(folder: Path, count: int = 80) -> Data:
    x, y = images(count)
    np.savez(folder / "toy.npz", x=x, y=y)
    return load_data(folder / "toy.npz", **SMALL)


def toy_model(dropout: float = 0.0) -> nn.Module:
    """A frozen convolution and a trainable head; dropout makes the result depend on the random state."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(dropout),
        nn.Linear(128, 4),
    )  # fmt: skip
    model[0].requires_grad_(False)
    return model


def hooks(model: nn.Module) -> dict[str, Callable[[Path], None]]:
    """`save` and `load` of the head, as `utc.save_tuners` and `utc.load_tuners` do it."""

    def save(folder: Path) -> None:
        torch.save({k: v for k, v in model.state_dict().items() if k.startswith("5")}, folder / "tuners.pt")

    def load(folder: Path) -> None:
        model.load_state_dict(torch.load(folder / "tuners.pt", weights_only=True), strict=False)

    return {"save": save, "load": load}
