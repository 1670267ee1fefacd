"""Processor time of a training step on one thread, which neighbours of the machine hardly change; ratios to PEFT's.

The cases are those of `benchmarks.memory` with four images, and a small ResNet-18, where Python takes much of the time;
and learned prefixes, next to the same model without a plan. Run it with `--threads 1`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import timm
import torch
from torch import nn

from benchmarks.measure import Row
from benchmarks.memory import Case, cases, compare, draw_norms
from benchmarks.rivals import R, by_peft


def run(quick: bool) -> Iterator[Row]:
    """Each case in turns in this process."""
    yield from compare(_small(), 2 if quick else 40, time.thread_time, "PEFT")
    for case in (_prefixes(), *cases(4, quick=False)):
        if not quick:
            of = "PEFT" if case.peft is not None else "as torch keeps things"
            yield from compare(case, 5, time.thread_time, of)


def _small() -> Case:
    torch.manual_seed(0)
    resnet = timm.create_model("resnet18", num_classes=10).eval()
    draw_norms(resnet)
    return Case(
        f"ResNet-18, LoRA r={R} on every convolution, batch 2, 64 px", resnet, "lora/all_conv",
        {"x": torch.randn(2, 3, 64, 64)}, "conv1", lambda m: by_peft(m, nn.Conv2d, "fc"),
    )  # fmt: skip


def _prefixes() -> Case:
    vit = timm.create_model("vit_small_patch16_224", num_classes=10).eval()
    images = {"x": torch.randn(4, 3, 224, 224)}
    return Case("ViT-S/16, learned prefixes, batch 4", vit, "prefix/prefix", images, "patch_embed", None, ())
