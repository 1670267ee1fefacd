"""Training steps of LoRA, SSF and adapters, in turns with PEFT's LoRA: time, peak memory, bytes kept for backward."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

import utcompile as utc
from benchmarks.gpu.memory import kept, peak
from benchmarks.gpu.row import Check, Findings
from benchmarks.gpu.steps import Inputs, first, loss, moved, tf32, trained
from benchmarks.gpu.subjects import Subject, large
from benchmarks.measure import Row, paired
from benchmarks.rivals import R, by_hand, by_peft

# name, autocast, TF32, channels last
_PRECISIONS = (
    ("bfloat16", torch.bfloat16, True, False),
    ("float32", None, False, False),
    ("bfloat16, channels last", torch.bfloat16, True, True),
    ("TF32", None, True, False),
)


def checks(device: str, quick: bool) -> Iterator[Check]:
    """ViT-S/16 and ResNet-50; each precision is a row, so that a run that is cut off has the first ones."""
    for name, subject in list(large(quick).items())[: 1 if quick else 2]:
        yield from _precisions(name, subject, device, quick, _PRECISIONS[:1] if quick else _PRECISIONS)


def more(device: str, quick: bool) -> Iterator[Check]:
    """A language model, and compiled steps."""
    subjects = list(large(quick).items())
    if not quick:
        yield from _precisions(*subjects[2], device, quick, _PRECISIONS[:1])
        name, subject = subjects[0]
        run = partial(_compiled, subject, device)
        yield Check("speed", f"{name}, bfloat16, torch.compile", run, seconds=150, needs=("timm", "peft"), cuda=True)


def _precisions(name: str, subject: Subject, device: str, quick: bool, precisions: Any) -> Iterator[Check]:
    for precision, autocast, on, last in precisions:
        if last and subject.layer is not nn.Conv2d:
            continue
        run = partial(_compared, name, subject, device, quick, autocast, on, last)
        yield Check("speed", f"{name}, {precision}", run, seconds=60, needs=(subject.package,))


def _compared(
    name: str, subject: Subject, device: str, quick: bool, autocast: Any, on: bool, last: bool, found: Findings
) -> None:
    models, inputs = candidates(name, subject, device)
    if last:
        models = {what: copy.deepcopy(m).to(memory_format=torch.channels_last) for what, m in models.items()}
        inputs = {k: t.contiguous(memory_format=torch.channels_last) for k, t in inputs.items()}
    with tf32(on):
        _measure(models, inputs, device, autocast, 2 if quick else 15, found)


@lru_cache(maxsize=1)
def candidates(name: str, subject: Subject, device: str) -> tuple[dict[str, nn.Module], dict[str, torch.Tensor]]:
    """The same model, trained in each way, on the device, and its inputs; the first is the reference."""
    model, inputs = subject.make()
    few = first(inputs, 2)
    lora = {"r": R, "alpha": R}
    models: dict[str, nn.Module] = {}
    if find_spec("peft"):
        models["PEFT, LoRA"] = by_peft(model, subject.layer, subject.head)
    models["by hand, LoRA"] = by_hand(model, subject.layer, subject.head)
    for rules, settings in ((subject.lora, lora), *((rules, {}) for rules in subject.others)):
        fresh, _ = subject.make()  # `.to(device)` moves shared weights, so nothing is shared
        models[f"utcompile, {rules}"] = utc.compile(fresh, rules, few, vars=settings, verify="shapes").train()
    return {what: m.to(device) for what, m in models.items()}, moved(inputs, device)


def _measure(
    models: dict[str, nn.Module], inputs: Inputs, device: str, autocast: Any, rounds: int, found: Findings
) -> None:
    steps = {what: step(m, inputs, device, autocast) for what, m in models.items()}
    rows = paired("", steps, rounds=rounds, warmup=1 if rounds < 3 else 3)
    entries = []
    for what, model in models.items():
        bytes_kept = kept(partial(forward, model, inputs, device, autocast), device)
        entries.append(_entry(rows[what], model, peak(steps[what], device), bytes_kept))
    for entry in entries:
        entry["peak_ratio"] = entry["peak_mb"] / entries[0]["peak_mb"] if entry["peak_mb"] else None
    found.note(batch=len(next(iter(inputs.values()))), rounds=rounds, steps=entries)


def _entry(row: Row, model: nn.Module, bytes_at_peak: int, bytes_kept: int) -> dict[str, Any]:
    """One line of the table of steps."""
    return {
        "what": row.what,
        "parameters": sum(p.numel() for p in trained(model).values()),
        "ms": row.median,
        "lower": row.lower,
        "upper": row.upper,
        "ratio": row.ratio,
        "peak_mb": bytes_at_peak / 1e6,
        "kept_mb": bytes_kept / 1e6,
    }


def step(model: Any, inputs: Inputs, device: str, autocast: Any) -> Callable[[], None]:
    """One training step with AdamW, over when the device has done it."""
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-4)

    def run() -> None:
        optimizer.zero_grad()
        forward(model, inputs, device, autocast).backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def forward(model: Any, inputs: Inputs, device: str, autocast: Any) -> torch.Tensor:
    """The loss of a model."""
    with torch.autocast(device, autocast, enabled=autocast is not None):
        return loss(model(**inputs))


def _compiled(subject: Subject, device: str, found: Findings) -> None:
    """LoRA by PEFT and by utcompile, each compiled."""
    torch._dynamo.reset()
    model, inputs = subject.make()
    fresh, _ = subject.make()
    lora = {"r": R, "alpha": R}
    models = {
        "PEFT, LoRA": by_peft(model, subject.layer, subject.head),
        f"utcompile, {subject.lora}": utc.compile(fresh, subject.lora, first(inputs, 2), vars=lora, verify="shapes"),
    }
    compiled = {what: torch.compile(m.to(device)) for what, m in models.items()}
    with tf32(True):
        _measure(compiled, moved(inputs, device), device, torch.bfloat16, 15, found)
