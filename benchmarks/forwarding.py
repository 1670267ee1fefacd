"""A captured graph beside the original model: the same operations, without the Python of the modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import timm
import torch
from torch import nn

import utcompile as utc
from benchmarks.measure import Row, paired

MODELS = ("vit_small_patch16_224", "resnet50", "convnext_tiny", "efficientnet_lite0", "swin_tiny_patch4_window7_224")


def run(quick: bool) -> Iterator[Row]:
    """224 pixels: forward at batch 8 without gradient, and forward with the backward to the image at batch 4."""
    for name in MODELS[:1] if quick else MODELS:
        model = timm.create_model(name).eval().requires_grad_(False)
        x = torch.randn(2 if quick else 8, 3, 224, 224)
        captured = utc.capture(model, (x,), verify="shapes")
        both: dict[str, nn.Module] = {"original": model, "captured": captured}
        rounds = 3 if quick else 15
        with torch.no_grad():
            forward = {k: lambda m=m, x=x: m(x) for k, m in both.items()}
            rows = paired(f"forward of {name}, batch {len(x)}", forward, rounds=rounds, warmup=2)
        yield from rows.values()
        image = x[: len(x) // 2].clone().requires_grad_()
        backward = {k: _step(m, image) for k, m in both.items()}
        rows = paired(f"forward and backward of {name}, batch {len(image)}", backward, rounds=rounds, warmup=2)
        yield from rows.values()


def _step(model: nn.Module, image: torch.Tensor) -> Callable[[], object]:
    def step() -> object:
        image.grad = None
        return model(image).sum().backward()

    return step
