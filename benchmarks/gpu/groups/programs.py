"""The tuned model as a program: `torch.compile`, CUDA graphs, activation checkpointing, waits of one forward."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import utcompile as utc
from benchmarks.gpu.memory import kept
from benchmarks.gpu.row import Check, Findings
from benchmarks.gpu.rules_of_cuda import waits
from benchmarks.gpu.steps import Inputs, first, forget, gradients, logits, loss, moved, of, worst
from benchmarks.gpu.subjects import SMALL, tuned

_COMPILED = (
    ("vit", "lora/all_linear", "default"),
    ("resnet", "lora/all_conv", "default"),
    ("vit", "u_tuning/dual", "reduce-overhead"),
    ("llama", "lora/all_linear", "default"),
)


def checks(device: str, quick: bool) -> Iterator[Check]:
    """Waits, graphs and checkpoints are cheap and come first; compiling takes most of the time."""
    yield Check("programs", "a model that reads an integer: one wait per call", partial(_reads, device))
    for name in ("vit",) if quick else ("vit", "swin", "bert", "llama"):
        run = partial(_forward_waits, name, device)
        yield Check("programs", f"{name}: waits per forward", run, needs=(SMALL[name].package,))
    yield Check("programs", "vit, CUDA graphs in training", partial(_graphed, device), needs=("timm",), cuda=True)
    yield Check("programs", "resnet, activation checkpointing", partial(_checkpointed, device), needs=("timm",))
    for rules in ("ssf/all_layers", "lora/all_conv"):
        run = partial(_no_second_weight, rules, device)
        yield Check("programs", f"resnet, {rules}, channels last: kept bytes", run, needs=("timm",))
    for name, rules, mode in _COMPILED[:1] if quick else _COMPILED:
        run, needs = partial(_compiled, name, rules, mode, device), (SMALL[name].package,)
        yield Check("programs", f"{name}, {rules}, torch.compile, {mode}", run, seconds=90, needs=needs)


def _exact(name: str, rules: str, device: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """A tuned model in float64: what is right there differs by rounding only, however sums are ordered."""
    model, inputs = tuned(name, rules)
    return model.to(device, torch.float64), moved(inputs, device, torch.float64)


class Repeats(nn.Module):
    """Runs its layer as often as an input says."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """`(B, 8)` and a number of rounds."""
        for _ in range(int(k)):
            x = torch.relu(self.layer(x))
        return x


def _reads(device: str, found: Findings) -> None:
    """Values that Python reads are compared in each call; this may cost one wait, not one for each value."""
    model = Repeats().to(device)
    inputs = {"x": torch.randn(2, 8, device=device), "k": torch.tensor(2, device=device)}
    captured = utc.capture(model, inputs)
    found.note(model=waits(device, lambda: model(**inputs)))
    found.at_most("capture", waits(device, lambda: captured(**inputs)), 1)


def _forward_waits(name: str, device: str, found: Findings) -> None:
    model, inputs = SMALL[name].make()
    model, inputs = model.to(device), moved(inputs, device)
    captured = utc.capture(model, inputs, verify="shapes")
    with torch.no_grad():
        found.note(model=waits(device, lambda: model(**inputs)))
        found.at_most("capture", waits(device, lambda: captured(**inputs)), 0)


def _graphed(device: str, found: Findings) -> None:
    model, inputs = _exact("vit", "", device)
    expected = gradients(model, inputs)
    graphed = torch.cuda.make_graphed_callables(copy.deepcopy(model), tuple(inputs.values()))
    forget(graphed)
    loss(graphed(*inputs.values())).backward()
    found.at_most("gradients", worst(of(graphed), expected), 1e-7)


def _checkpointed(device: str, found: Findings) -> None:
    """Under a checkpoint of the whole model nothing of it is kept but its inputs; all is computed again."""
    model, inputs = _exact("resnet", "", device)

    def again() -> torch.Tensor:
        return loss(checkpoint(lambda: logits(model(**inputs)), use_reentrant=False))

    expected = gradients(model, inputs)
    forget(model)
    again().backward()
    found.at_most("gradients", worst(of(model), expected), 1e-7)
    plain = kept(lambda: loss(model(**inputs)), device)
    found.at_most("share of the kept bytes", kept(again, device) / plain, 0.05)  # outputs, and what an allocator rounds


def _no_second_weight(rules: str, device: str, found: Findings) -> None:
    """The order of the channels in memory does not change what backward needs."""
    model, inputs = tuned("resnet", rules)
    model, inputs = model.to(device), moved(inputs, device)
    plain = kept(lambda: loss(model(**inputs)), device)
    model.to(memory_format=torch.channels_last)
    last = {name: t.contiguous(memory_format=torch.channels_last) for name, t in inputs.items()}
    found.at_most("of the contiguous one's", kept(lambda: loss(model(**last)), device) / plain, 1.2)


def _compiled(name: str, rules: str, mode: str, device: str, found: Findings) -> None:
    """One graph per kind of size, the same gradients."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model, inputs = _exact(name, rules, device)
    how: dict[str, Any] = {"mode": mode} if device == "cuda" else {"backend": "aot_eager"}
    compiled = torch.compile(model, fullgraph=True, **how)
    errors = [_compiled_error(model, compiled, first(inputs, batch), device) for batch in (2, 1, 2)]
    found.at_most("gradients", max(errors), 1e-7)
    found.at_most("graphs", counters["stats"]["unique_graphs"], 2)
    found.note(cudagraph_skips=counters["inductor"]["cudagraph_skips"])


def _compiled_error(model: Any, compiled: Any, inputs: Inputs, device: str) -> float:
    expected = gradients(model, inputs)
    forget(model)
    if device == "cuda":
        torch.compiler.cudagraph_mark_step_begin()
    loss(compiled(**inputs)).backward()
    return worst(of(model), expected)
