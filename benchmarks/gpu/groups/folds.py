"""Folding on the device, under torch's defaults: TF32 in convolutions."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

import utcompile as utc
from benchmarks.gpu.row import Check, Findings
from benchmarks.gpu.rules_of_cuda import tf32_convolutions
from benchmarks.gpu.steps import apart, logits, moved, shaken, tf32
from benchmarks.gpu.subjects import SMALL

_CASES = (
    ("resnet", "lora/all_conv"),
    ("vit", "u_tuning/dual_foldable"),
    ("convnext", "lora/all_conv"),
    ("bert", "lora/all_linear"),
    ("llama", "lora/all_linear"),
    ("swin", "lora/all_linear"),
)


def checks(device: str, quick: bool) -> Iterator[Check]:
    """Fold and compare; one is exported from the device."""
    for name, rules in _CASES[:1] if quick else _CASES:
        yield Check("fold", f"{name}, {rules}", partial(_fold, name, rules, device), needs=(SMALL[name].package,))
    needs = ("timm", "onnx", "onnxscript", "onnxruntime")
    if not quick:  # ONNX Runtime's check folds and exports the ViT too
        yield Check("fold", "vit, exported from the device", partial(_export, device), seconds=60, needs=needs)


def _fold(name: str, rules: str, device: str, found: Findings) -> None:
    """The proof compares in float32, whatever convolutions use elsewhere: the bound is a hundred roundings.

    In TF32 the folded weights are rounded to ten bits in each layer.
    """
    model, inputs = SMALL[name].make()
    tuned = shaken(utc.compile(model, rules, inputs, verify="shapes"), 0.02).eval().to(device)
    with tf32_convolutions(device):
        folded, report = utc.fold(tuned)
    found.note(sites=len(report.sites), kept=len(report.kept))
    found.at_most("proof", report.max_error, 1e-4)
    found.must(folded.device.type == device, f"the folded model is on {folded.device}")
    for mode, on, bound in (("float32", False, 1e-4), ("TF32", True, 1e-2)):
        with torch.no_grad(), tf32(on), tf32_convolutions(device):
            pair = [logits(m(**moved(inputs, device))) for m in (folded, tuned)]
        found.at_most(f"error, {mode}", apart(*pair), bound)


def _export(device: str, found: Findings) -> None:
    """`export_onnx` compares with ONNX Runtime itself; a difference is its error."""
    model, inputs = SMALL["vit"].make()
    tuned = shaken(utc.compile(model, "u_tuning/dual_foldable", inputs, verify="shapes"), 0.02).to(device)
    folded, _ = utc.fold(tuned)
    with tempfile.TemporaryDirectory() as folder:
        result = utc.export_onnx(folded, Path(folder) / "model.onnx", moved(inputs, device))
        found.note(opset=result.opset, error=result.max_error)
