"""How long `utc.capture` takes, beside one forward of the model at batch 1, and how many nodes it records."""

from __future__ import annotations

from collections.abc import Iterator

import timm
import torch
from torch import nn

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
    for operations in (1_000,) if quick else (1_000, 10_000, 50_000):
        chain = Chain(operations)
        yield repeated(
            "capture",
            f"a chain of {operations:,} operations, verify=shapes",
            lambda chain=chain: utc.capture(chain, (torch.randn(2, 8),), verify="shapes"),
            rounds=1 if quick else 3,
        )


class Chain(nn.Module):
    """So many elementwise operations, one after the other."""

    def __init__(self, operations: int) -> None:
        super().__init__()
        self.operations, self.linear = operations, nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Alternately add and multiply."""
        x = self.linear(x)
        for i in range(self.operations):
            x = x + 1 if i % 2 else x * 2
        return x
