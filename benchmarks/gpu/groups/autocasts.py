"""Weights that backward makes again: under autocast they must be those that forward used."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.row import Check, Findings
from benchmarks.gpu.steps import deterministic, forget, gradients, loss, moved, of, worst
from benchmarks.gpu.subjects import SMALL, tuned

_CASES = (
    ("resnet", "lora/all_conv"),
    ("vit", "lora/dora_all_linear"),
    ("convnext", "lora/all_conv"),
    ("llama", "lora/dora_all_linear"),
    ("vit", "ssf/all_layers"),
)


def checks(device: str, quick: bool) -> Iterator[Check]:
    """Rules whose sites are reparametrised: the changed weight is computed again in backward."""
    for name, rules in _CASES[1:2] if quick else _CASES:
        run = partial(_same_weight, name, rules, device)
        yield Check("autocast", f"{name}, {rules}: the weight of backward", run, needs=(SMALL[name].package,))


def _same_weight(name: str, rules: str, device: str, found: Findings) -> None:
    """`backward()` after the autocast region, as everyone calls it, and inside it: one gradient.

    All that is saved has its dtype already, so the region decides nothing in backward but how a weight is made again.
    LoRA by hand gives bit-equal gradients (measured on a CPU); one rounding to bfloat16 is 4e-3.
    """
    model, inputs = tuned(name, rules)
    model, inputs = model.to(device), moved(inputs, device)
    with deterministic():
        after = gradients(model, inputs, torch.bfloat16)
        forget(model)
        with torch.autocast(device, torch.bfloat16):
            loss(model(**inputs)).backward()
    found.at_most("difference", worst(after, of(model)), 1e-3)
