"""How long `utc.fold` takes, with its proofs in float64."""

from __future__ import annotations

from collections.abc import Iterator

import timm
import torch

import utcompile as utc
from benchmarks.measure import Row, repeated


def run(quick: bool) -> Iterator[Row]:
    """LoRA on every layer, and the foldable siblings of adapters: EfficientNet-Lite0 and ViT-B/16."""
    jobs = [("efficientnet_lite0", "lora/all_conv"), ("efficientnet_lite0", "convnet/inverted_residual_foldable")]
    if not quick:
        jobs += [("vit_base_patch16_224", rules) for rules in ("lora/all_linear", "u_tuning/dual_foldable")]
    for name, rules in jobs[:1] if quick else jobs:
        tuned = utc.compile(timm.create_model(name).eval(), rules, (torch.randn(2, 3, 224, 224),), verify="shapes")
        shake(tuned)
        _, report = utc.fold(tuned)
        note = f"{len(report.sites)} sites, model error {report.max_error:.1e}"
        yield repeated("fold", f"{name}, {rules}", lambda t=tuned: utc.fold(t), 1 if quick else 3, note)


def shake(tuned: utc.TunedModule) -> None:
    """Move the tuners off zero, as training would."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
