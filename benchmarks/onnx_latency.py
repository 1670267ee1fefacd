"""Latency in ONNX Runtime of the base, the tuned and the folded model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import timm
import torch

import utcompile as utc
from benchmarks.folding import shake
from benchmarks.measure import Row
from utcompile.deploy import latency


def run(quick: bool) -> Iterator[Row]:
    """Batch 1: ViT-S/16 with `u_tuning/dual_foldable`, dim 64, and EfficientNet-Lite0 with its foldable rule."""
    jobs = [
        ("efficientnet_lite0", "convnet/inverted_residual_foldable", {}),
        ("vit_small_patch16_224", "u_tuning/dual_foldable", {"dim": 64}),
    ]
    for name, rules, variables in jobs[:1] if quick else jobs:
        x = torch.randn(1, 3, 224, 224)
        model = timm.create_model(name).eval()
        tuned = utc.compile(model, rules, (x,), vars=variables, verify="shapes")
        shake(tuned)
        folded, _ = utc.fold(tuned, strict=True)
        with tempfile.TemporaryDirectory() as folder:
            paths = {}
            for kind, module in (("base", model), ("tuned", tuned), ("folded", folded)):
                paths[kind] = utc.export_onnx(module, Path(folder) / f"{kind}.onnx", (x,), batch_sizes=(1, 2)).path
            times = latency(paths, (x,), rounds=10 if quick else 100)
        for kind, entry in times.items():
            yield Row(
                f"ONNX Runtime, {name}, {rules}, batch 1",
                kind,
                entry.median,
                entry.lower,
                entry.upper,
                entry.rounds,
                entry.ratio,
            )
