"""Attention as the model wrote it: flash kernels take no mask, and repeated keys cost their memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

import utcompile as utc
from benchmarks.gpu.row import Check, Findings
from benchmarks.gpu.steps import Inputs, moved
from benchmarks.gpu.subjects import SMALL


def checks(device: str, quick: bool) -> Iterator[Check]:
    """How the model and its capture call attention; on a GPU, which kernels run."""
    for name in ("llama",) if quick else ("llama", "bert"):
        run = partial(_called_alike, name, device)
        yield Check("attention", f"{name}: called as by the model", run, needs=("transformers",))
    run = partial(_kernels, device)
    yield Check("attention", "llama: the model's kernel", run, needs=("transformers",), cuda=True)


def _called_alike(name: str, device: str, found: Findings) -> None:
    model, inputs = SMALL[name].make()
    model, inputs = model.to(device), moved(inputs, device)
    captured = utc.capture(model, inputs, verify="shapes")
    for what, module in (("model", model), ("capture", captured)):
        with torch.no_grad(), _Watched() as watched:
            module(**inputs)
        found.note(**{what: " and ".join(dict.fromkeys(watched.calls))})
    own, theirs = found.figures["capture"], found.figures["model"]
    found.must(own == theirs, f"attention is called with {own}, by the model with {theirs}")


class _Watched(TorchFunctionMode):
    """Notes what attention is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.calls.append(_told(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def _told(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> str:
    mask = "a mask" if attn_mask is not None else "the causal flag" if is_causal else "no mask"
    return f"{mask}, {key.shape[1]} heads of keys"


def _kernels(device: str, found: Findings) -> None:
    model, inputs = SMALL["llama"].make()
    long = {"input_ids": inputs["input_ids"].repeat(1, 40).to(device)}
    captured = utc.capture(model.to(device), long, verify="shapes")
    for what, module in (("model", model), ("capture", captured)):
        found.note(**{what: _kernel(module, long)})
    found.must(found.figures["model"] == found.figures["capture"], "the capture runs another attention kernel")


def _kernel(module: Any, inputs: Inputs) -> str:
    from torch.profiler import ProfilerActivity, profile

    autocast = torch.autocast("cuda", torch.bfloat16)
    with torch.no_grad(), autocast, profile(activities=[ProfilerActivity.CUDA]) as profiled:
        module(**inputs)
    names = " ".join(event.key for event in profiled.key_averages()).lower()
    signs = {"flash": "flash", "fmha": "memory-efficient", "efficient": "memory-efficient", "cudnn": "cuDNN"}
    return next((kind for sign, kind in signs.items() if sign in names), "plain")
