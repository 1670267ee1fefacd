"""Latency in ONNX Runtime of the base, the tuned and the folded model, and of PEFT's, unmerged and merged."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import utcompile as utc
from benchmarks.folding import shake
from benchmarks.measure import Row
from utcompile.deploy import latency


@dataclass(frozen=True)
class Job:
    """A model, its rules, and for LoRA the class of the layers that PEFT tunes."""

    model: str
    rules: str
    variables: dict[str, int]
    layer: type[nn.Module] | None = None


JOBS = (
    Job("efficientnet_lite0", "convnet/inverted_residual_foldable", {"dim": 32}),
    Job("efficientnet_lite0", "lora/all_conv", {"r": 8}, nn.Conv2d),
    Job("resnet50", "lora/all_conv", {"r": 8}, nn.Conv2d),
    Job("convnext_tiny", "lora/all_linear", {"r": 8}, nn.Linear),
    Job("convnext_tiny", "u_tuning/dual_foldable", {"dim": 64}),
    Job("vit_small_patch16_224", "lora/all_linear", {"r": 8}, nn.Linear),
    Job("vit_small_patch16_224", "u_tuning/dual_foldable", {"dim": 64}),
)


def run(quick: bool) -> Iterator[Row]:
    """Batch 1 and 8, 224 px. The notes are FLOPs, of the base's; absorbed is 1, widened a little more."""
    for job in JOBS[:1] if quick else JOBS:
        torch.manual_seed(0)
        model = timm.create_model(job.model).eval()
        modules = _modules(model, job)
        flops = {kind: _flops(module) for kind, module in modules.items()}
        with tempfile.TemporaryDirectory() as folder:
            paths = {kind: _export(module, Path(folder) / f"{kind}.onnx") for kind, module in modules.items()}
            for batch in (1,) if quick else (1, 8):
                x = torch.randn(batch, 3, 224, 224)
                times = latency(paths, (x,), batch, rounds=10 if quick else 100 // batch + 20)
                for kind, entry in times.items():
                    yield Row(
                        f"ONNX Runtime, {job.model}, {job.rules} {job.variables}, batch {batch}",
                        kind,
                        entry.median,
                        entry.lower,
                        entry.upper,
                        entry.rounds,
                        entry.ratio,
                        f"{flops[kind] / flops['base']:.3f} of the base's FLOPs",
                    )


def _modules(model: nn.Module, job: Job) -> dict[str, nn.Module]:
    x = torch.randn(1, 3, 224, 224)
    tuned = utc.compile(model, job.rules, (x,), vars=job.variables, verify="shapes")
    shake(tuned)
    folded, _ = utc.fold(tuned, strict=True)
    found: dict[str, nn.Module] = {"base": model, "tuned": tuned.eval(), "folded": folded}
    if job.layer is not None and find_spec("peft"):
        from peft import LoraConfig, get_peft_model

        head = model.get_classifier()  # type: ignore[operator]
        layers = [n for n, m in model.named_modules() if isinstance(m, job.layer) and m is not head]
        if job.model == "efficientnet_lite0":  # it cannot tune a depthwise convolution with this rank
            layers = [n for n in layers if model.get_submodule(n).groups == 1]
        adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=8, lora_alpha=8, target_modules=layers)).eval()
        found["PEFT"] = adapted.base_model.model
        found["PEFT, merged"] = copy.deepcopy(adapted).merge_and_unload()
    return found


def _flops(module: nn.Module) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.randn(1, 3, 224, 224))
    return int(counter.get_total_flops())


def _export(module: nn.Module, path: Path) -> Path:
    return utc.export_onnx(module, path, (torch.randn(1, 3, 224, 224),), batch_sizes=(1, 2)).path
