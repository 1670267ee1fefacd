"""One training step (forward, loss, backward, AdamW) of LoRA r=8 on every linear of ViT-S/16."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import timm
import torch
import torch.nn.functional as F
from torch import nn

import utcompile as utc
from benchmarks.measure import Row, paired

R = 8


def run(quick: bool) -> Iterator[Row]:
    """LoRA by utcompile and, where it is installed, by PEFT, between two floors.

    The first is the frozen model with a gradient for its input: the backward pass that every tuner inside needs. The
    other trains the head alone and needs no backward pass through the backbone.
    """
    torch.manual_seed(0)
    batch = 2 if quick else 8
    model = timm.create_model("vit_small_patch16_224", num_classes=10).eval()
    x, labels = torch.randn(batch, 3, 224, 224), torch.randint(10, (batch,))
    tuned = utc.compile(model, "lora/all_linear", (x,), vars={"r": R, "alpha": R}, verify="shapes")
    leaf = x.clone().requires_grad_()
    candidates = {
        "frozen model, gradient to the input": _step(_probe(model), leaf, labels),
        "frozen model, head alone": _step(_probe(model), x, labels),
        "utcompile": _step(tuned, x, labels),
    }
    if find_spec("peft"):
        candidates["peft"] = _step(_peft(model), x, labels)
    rows = paired(
        f"training step, ViT-S/16, LoRA r={R}, batch {batch}", candidates, rounds=2 if quick else 12, warmup=2
    )
    yield from rows.values()


def _probe(model: nn.Module) -> nn.Module:
    probe = copy.deepcopy(model).requires_grad_(False)
    probe.get_submodule("head").requires_grad_(True)
    return probe


def _peft(model: nn.Module) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "head"]
    config = LoraConfig(r=R, lora_alpha=R, target_modules=linears, modules_to_save=["head"])
    return get_peft_model(copy.deepcopy(model), config)


def _step(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return step
