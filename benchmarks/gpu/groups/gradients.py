"""Tuners on the device: gradients as on the CPU, exactly in float64, nearly in other precisions; waits of a step."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.row import Check, Findings
from benchmarks.gpu.rules_of_cuda import waits
from benchmarks.gpu.steps import Gradients, Inputs, cosine, gradients, loss, moved, tf32, worst
from benchmarks.gpu.subjects import SMALL, tuned

# the rules, and the small models that they fit
_FIRST = {
    "lora/all_linear": "vit swin bert llama",
    "lora/all_conv": "resnet vit swin convnext",
    "ssf/all_layers": "vit resnet swin convnext bert",
    "adapter/houlsby": "vit swin convnext bert",
    "prefix/prefix": "vit swin bert llama",
}
_REST = {
    "lora/dora_all_linear": "vit swin bert llama",
    "u_tuning/dual": "vit swin bert",
    "prompt/vpt_deep": "vit swin bert",
    "res_tuning/bypass": "vit resnet swin convnext bert llama",
    "side/lst": "vit resnet swin convnext bert llama",
    "ia3/keys_values_ffn": "vit swin convnext bert",
    "bitfit/biases": "vit resnet swin convnext bert",
    "conv/convpass": "vit swin convnext",
    "convnet/residual_parallel": "resnet convnext",
    "rep_adapter/before_layers": "vit swin convnext bert",
}
_QUICK = {"lora/all_conv": "resnet", "prefix/prefix": "vit", "ssf/all_layers": "bert"}


def checks(device: str, quick: bool) -> Iterator[Check]:
    """The families that are used most, on each small model."""
    yield from _pairs(device, _QUICK if quick else _FIRST)


def more(device: str, quick: bool) -> Iterator[Check]:
    """All other families."""
    yield from _pairs(device, {} if quick else _REST)


def _pairs(device: str, pairs: Mapping[str, str]) -> Iterator[Check]:
    for rules, names in pairs.items():
        for name in names.split():
            run = partial(_on_device, name, rules, device)
            yield Check("gradients", f"{name}, {rules}", run, seconds=20, needs=(SMALL[name].package,))


def _on_device(name: str, rules: str, device: str, found: Findings) -> None:
    model, inputs = tuned(name, rules)
    twice, doubled = copy.deepcopy(model).double(), moved(inputs, "cpu", torch.float64)
    expected = gradients(twice, doubled)
    twice, doubled = twice.to(device), moved(doubled, device)
    found.at_most("float64", worst(gradients(twice, doubled), expected), 1e-7)
    if name in ("resnet", "convnext"):
        last = {k: t.contiguous(memory_format=torch.channels_last) for k, t in doubled.items()}
        error = worst(gradients(twice.to(memory_format=torch.channels_last), last), expected)
        found.at_most("float64, channels last", error, 1e-7)
    model, inputs = model.to(device), moved(inputs, device)
    _in_each_precision(model, inputs, expected, device, found)
    found.at_most("waits", waits(device, lambda: loss(model(**inputs)).backward()), 0)


def _in_each_precision(model: Any, inputs: Inputs, expected: Gradients, device: str, found: Findings) -> None:
    """Cosines: a small gradient that is a sum of large terms may be far off in these, and be right in float64."""
    with tf32(False):
        found.at_least("float32, cosine", cosine(gradients(model, inputs), expected), 0.99999)
    with tf32(True):
        found.at_least("TF32, cosine", cosine(gradients(model, inputs), expected), 0.999)
    found.at_least("bfloat16, cosine", cosine(gradients(model, inputs, torch.bfloat16), expected), 0.98)
    if device == "cuda":
        scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
        half = gradients(model, inputs, torch.float16, scaler)
        found.at_least("float16, cosine", cosine(half, expected), 0.98)
