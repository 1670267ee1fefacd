"""A tuned model in other hands: `disable_tuners` on, off and prepared by others; saved, pickled and copied."""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

import utcompile as utc
from benchmarks.gpu.row import Check, Findings
from benchmarks.gpu.steps import apart, logits, moved, shaken
from benchmarks.gpu.subjects import SMALL, tuned


def checks(device: str, quick: bool) -> Iterator[Check]:
    """`disable_tuners` plain, under accelerate and compiled; files between devices; the meta device."""
    yield Check("switches", "disable_tuners", partial(_disabled, device), needs=("timm",))
    needs = ("timm", "accelerate")
    yield Check("switches", "disable_tuners under accelerate's bfloat16", partial(_prepared, device), needs=needs)
    yield Check("switches", "disable_tuners, compiled", partial(_compiled, device), seconds=90)
    yield Check("switches", "saved on the device, loaded on the CPU", partial(_saved, device), needs=("timm",))
    yield Check("switches", "pickle, deepcopy", partial(_copied, device), needs=("timm",))
    yield Check("switches", "a training step on the meta device", _on_meta, needs=("timm",))


def _pair(device: str) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """A base and its tuned model on the device, and their inputs."""
    base, _ = SMALL["vit"].make()
    model, inputs = tuned("vit")
    return base.to(device), model.to(device), moved(inputs, device)


def _off(base: Any, model: Any, inputs: dict[str, torch.Tensor], switched: utc.TunedModule) -> tuple[float, float]:
    """How far the model is from the base when its tuners are off, and when they are on."""
    with torch.no_grad():
        expected = logits(base(**inputs))
        with utc.disable_tuners(switched):
            off = logits(model(**inputs))
        return apart(off, expected), apart(logits(model(**inputs)), expected)


def _disabled(device: str, found: Findings) -> None:
    base, model, inputs = _pair(device)
    off, on = _off(base, model, inputs, model)
    found.at_most("off", off, 1e-5)  # float32, perhaps by another kernel
    found.at_least("on", on, 1e-3)


def _prepared(device: str, found: Findings) -> None:
    """The autocast region is accelerate's alone: the base itself is 4e-3 away in bfloat16, on a CPU."""
    from accelerate import Accelerator

    base, model, inputs = _pair(device)
    accelerator = Accelerator(mixed_precision="bf16", cpu=device == "cpu")
    off, on = _off(base, accelerator.prepare(model), inputs, model)
    found.at_most("off", off, 1.5e-2)
    found.at_least("on", on, 1e-1)


def _compiled(device: str, found: Findings) -> None:
    """Each way is compiled once: turning the tuners off and on again compiles nothing new."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).requires_grad_(False).to(device)
    inputs = {"input": torch.randn(2, 8, device=device)}
    model = shaken(utc.compile(copy.deepcopy(base), "lora/all_linear", inputs, verify="shapes"))
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter)
    for _ in range(3):
        off, on = _off(base, compiled, inputs, model)
    found.at_most("off", off, 1e-5)
    found.at_least("on", on, 1e-3)
    found.at_most("graphs", counter.frame_count, 2)


def _saved(device: str, found: Findings) -> None:
    _, model, inputs = _pair(device)
    fresh, _ = tuned("vit")
    with tempfile.TemporaryDirectory() as folder:
        utc.save_tuners(model, folder)
        utc.load_tuners(fresh, folder)
    for name, parameter in model.named_parameters():
        found.must(torch.equal(parameter.cpu(), fresh.get_parameter(name)), f"{name} differs")
    with torch.no_grad():
        found.at_most("error", apart(logits(fresh(**moved(inputs, "cpu"))), logits(model(**inputs))), 1e-2)


def _copied(device: str, found: Findings) -> None:
    _, model, inputs = _pair(device)
    with torch.no_grad():
        expected = logits(model(**inputs))
        for what, twin in (("pickle", pickle.loads(pickle.dumps(model))), ("deepcopy", copy.deepcopy(model))):
            found.must(torch.equal(logits(twin(**inputs)), expected), f"{what}: the outputs differ")


def _on_meta(found: Findings) -> None:
    """As memory estimators and FLOP counters run it."""
    model, inputs = tuned("vit")
    model.to("meta")
    loss = logits(model(**moved(inputs, "meta"))).float().pow(2).mean()
    loss.backward()
    found.must(all(p.grad is not None for p in model.parameters() if p.requires_grad), "a parameter has no gradient")
