"""How long matching and rewriting take, once a model is captured."""

from __future__ import annotations

from collections.abc import Iterator

import timm
import torch

import utcompile as utc
from benchmarks.measure import Row, repeated
from utcompile.rules import shipped_rules


def run(quick: bool) -> Iterator[Row]:
    """Every shipped rule file on ViT-B/16, or on EfficientNet-Lite0 where it is one for ConvNets."""
    models = {
        "vit_base_patch16_224": ("u_tuning", "lora/all_linear"),
        "efficientnet_lite0": ("convnet", "lora/all_conv"),
    }
    for model_name, prefixes in models.items():
        captured = utc.capture(timm.create_model(model_name).eval(), (torch.randn(2, 3, 224, 224),), verify="shapes")
        for rules in shipped_rules():
            if not rules.startswith(prefixes) or (quick and rules not in ("u_tuning/dual", "lora/all_conv")):
                continue
            plan = utc.match(captured, rules)
            rounds, where = (2 if quick else 5), f"{rules} on {model_name}"
            note = f"{len(plan.sites)} sites"
            yield repeated("match", where, lambda c=captured, r=rules: utc.match(c, r), rounds, note)
            yield repeated("rewrite", where, plan.apply, rounds, note)
