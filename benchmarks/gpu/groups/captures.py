"""Capture where the model is: the graph must belong to no device, and nothing else may change."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import utcompile as utc
from benchmarks.gpu.row import Check, Findings
from benchmarks.gpu.steps import apart, logits, moved
from benchmarks.gpu.subjects import SMALL


def checks(device: str, quick: bool) -> Iterator[Check]:
    """Each small model; half precision; kernels chosen by trial; inputs on another device than the model."""
    for name in ("vit", "llama") if quick else SMALL:
        yield Check("capture", name, partial(_in_place, name, device), needs=(SMALL[name].package,))
    yield Check("capture", "vit, bfloat16, verify=full", partial(_half, device), needs=("timm",))
    yield Check("capture", "resnet, cudnn.benchmark", partial(_by_trial, device), needs=("timm",), cuda=True)
    yield Check("capture", "inputs on the CPU: the message", partial(_elsewhere, device), needs=("timm",), cuda=True)


def _in_place(name: str, device: str, found: Findings) -> None:
    """Captured under torch's defaults (TF32 in cuDNN), then run, then moved to another device."""
    model, inputs = SMALL[name].make()
    model, inputs = model.to(device), moved(inputs, device)
    state = _random_state(device)
    captured = utc.capture(model, inputs)
    found.must(torch.equal(state, _random_state(device)), "capture used the caller's random numbers")
    with torch.no_grad():
        expected, own = logits(model(**inputs)), logits(captured(**inputs))
    found.note(bit_equal=torch.equal(own, expected))
    found.at_most("error", apart(own, expected), 1e-3 if device == "cuda" else 0.0)  # TF32 has ten bits
    baked = _device_constants(captured)
    found.at_most("device_constants", len(baked), 0)
    if not baked:
        _on_another_device(captured, inputs, expected, device, found)


def _device_constants(captured: torch.fx.GraphModule) -> list[str]:
    """The nodes that have a device among their arguments."""
    given = {n.name: [*n.args, *n.kwargs.values()] for n in captured.graph.nodes}
    return [name for name, args in given.items() if any(isinstance(a, torch.device) for a in args)]


def _on_another_device(
    captured: utc.CapturedModule, inputs: dict[str, torch.Tensor], expected: torch.Tensor, device: str, found: Findings
) -> None:
    """From the GPU to the CPU; from the CPU to the meta device, which also refuses operations on two devices."""
    other = "cpu" if device == "cuda" else "meta"
    with torch.no_grad():
        there = logits(captured.to(other)(**moved(inputs, other)))
    found.must(there.device.type == other, f"moved to {other}, the capture computes on {there.device}")
    if other == "cpu":
        found.at_most("error on the CPU", apart(there, expected), 1e-2)  # TF32 against float32


def _random_state(device: str) -> torch.Tensor:
    return torch.cat([torch.get_rng_state(), torch.cuda.get_rng_state()]) if device == "cuda" else torch.get_rng_state()


def _half(device: str, found: Findings) -> None:
    model, inputs = SMALL["vit"].make()
    half = {name: tensor.to(device, torch.bfloat16) for name, tensor in inputs.items()}
    found.note(verified=utc.capture(model.to(device, torch.bfloat16), half, verify="full").report.verified)


def _by_trial(device: str, found: Findings) -> None:
    """cuDNN may choose another kernel in each call: the comparison must allow for it."""
    model, inputs = SMALL["resnet"].make()
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        for _ in range(3):
            utc.capture(model.to(device), moved(inputs, device), verify="full")
    finally:
        torch.backends.cudnn.benchmark = before
    found.note(captures=3)


def _elsewhere(device: str, found: Findings) -> None:
    model, inputs = SMALL["vit"].make()
    try:
        utc.capture(model.to(device), inputs)
    except utc.UtcError as error:
        found.note(message=" ".join(str(error).split())[:200])
    else:
        found.must(False, "no error")
