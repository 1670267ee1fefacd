"""A captured graph's forward beside the original model's: the same operations, without the Python of the modules."""

from __future__ import annotations

from collections.abc import Iterator

import timm
import torch

import utcompile as utc
from benchmarks.measure import Row, paired


def run(quick: bool) -> Iterator[Row]:
    """Batch 8, 224 pixels, no gradient."""
    for name in ("vit_small_patch16_224", "resnet50"):
        model, x = timm.create_model(name).eval(), torch.randn(2 if quick else 8, 3, 224, 224)
        captured = utc.capture(model, (x,), verify="shapes")
        with torch.no_grad():
            rows = paired(
                f"forward of {name}, batch {len(x)}",
                {"original": lambda m=model, x=x: m(x), "captured": lambda m=captured, x=x: m(x)},
                rounds=3 if quick else 15,
                warmup=2,
            )
        yield from rows.values()
