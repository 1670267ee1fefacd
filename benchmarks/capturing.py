"""How long `utc.capture` takes, beside one forward of the model at batch 1, and how many nodes it records."""

from __future__ import annotations

from collections.abc import Iterator

import timm
import torch

import utcompile as utc
from benchmarks.measure import Row, repeated

MODELS = ("vit_base_patch16_224", "resnet50", "swin_tiny_patch4_window7_224", "efficientnet_lite0")


def run(quick: bool) -> Iterator[Row]:
    """Capture without and with the comparison of values; `values` adds a forward of the model and one of the graph."""
    for name in MODELS[1:2] if quick else MODELS:
        model, x = timm.create_model(name).eval(), torch.randn(1, 3, 224, 224)
        nodes = len(utc.capture(model, (x,), verify="shapes").graph.nodes)
        for verify in ("shapes", "values"):
            yield repeated(
                "capture",
                f"{name}, verify={verify}",
                lambda model=model, x=x, verify=verify: utc.capture(model, (x,), verify=verify),
                rounds=2 if quick else 5,
                note=f"{nodes} nodes",
            )
