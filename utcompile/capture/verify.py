"""Proof that a captured graph computes what the model computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from utcompile.capture.inputs import Inputs
from utcompile.capture.layouts import comparable
from utcompile.capture.nested import map_tensors, tensors
from utcompile.capture.samples import plan_samples
from utcompile.errors import UtcError
from utcompile.graph import UtcGraphModule

T = torch.Tensor
_EXAMPLE = "at the example inputs"


def check(model: nn.Module, captured: UtcGraphModule, inputs: Inputs, verify: str) -> str:
    """Compare as `verify` asks; returns what was compared, for the report.

    Raises:
        UtcError: an output differs, or there are no values to compare.
    """
    if verify == "shapes":
        return "shapes"
    if any(p.is_meta for p in [*model.parameters(), *model.buffers()]):
        raise UtcError(
            "the model has parameters on the meta device, so there are no values to verify",
            fix='pass verify="shapes", or load the weights first: model.to_empty(device="cpu") and load_state_dict',
        )
    compare(model, captured, inputs.arguments, _EXAMPLE)
    if verify != "full":
        return "values at the example inputs"
    for i, sample in enumerate(plan_samples(inputs.symbols, follow=False)[:: max(1, len(inputs.symbols))]):
        compare(model, captured, inputs.at(sample.sizes), f"at {sample}", gradients=i == 0)
    if captured.follows_mode:
        compare(model.train(), captured.train(), inputs.arguments, "in training", gradients=True)
        model.eval()
        captured.eval()
    return "values and gradients at several sizes" + (", in both modes" if captured.follows_mode else "")


def compare(
    model: nn.Module, captured: nn.Module, arguments: dict[str, Any], what: str, *, gradients: bool = False
) -> None:
    """Run both on the same inputs, under one seed, and compare bit for bit (on a CPU; elsewhere within rounding).

    At sizes of our own making a model may refuse the values; there is nothing to compare then.

    Raises:
        UtcError: an output, or the gradient of an input, differs; it names which, and by how much.
    """
    try:
        expected, expected_grads = _run(model, arguments, gradients)
    except Exception as error:  # whatever a model raises of values that it does not take
        if what != _EXAMPLE:
            return  # nothing to compare: the sizes are made up
        raise UtcError(
            "the model fails on the example inputs",
            why=f"{type(error).__name__}: {error}",
            fix="give example inputs on which it runs: its values count too",
        ) from error
    found, found_grads = _run(captured, arguments, gradients)
    if len(expected) != len(found):
        raise UtcError(f"the capture yields {len(found)} tensors, the model {len(expected)}", where=what)
    pairs = [(f"output {i}", a, b) for i, (a, b) in enumerate(zip(expected, found, strict=True))]
    if expected_grads is not None:
        if found_grads is None:
            raise UtcError("the model can be differentiated, and the capture cannot", where=what)
        both = zip(expected_grads, found_grads, strict=True)
        pairs += [(f"the gradient of input {i}", *pair) for i, pair in enumerate(both)]
    for name, a, b in pairs:
        if a.shape != b.shape or a.dtype != b.dtype:
            raise UtcError(
                f"{name} of the capture is {b.dtype} {list(b.shape)}, the model's {a.dtype} {list(a.shape)}",
                where=what,
            )
        if not (_close(a, b) if name.startswith("the gradient") else _equal(a, b)):
            largest = (a - b).abs().max().item() if a.is_floating_point() else float("nan")
            raise UtcError(
                f"{name} of the capture differs from the model's by {largest:.3g}",
                where=what,
                why="the model is not deterministic in eval mode, or reads state that changes between calls",
                fix='capture with verify="shapes" if that is intended',
            )


def _close(a: T, b: T) -> bool:
    """Gradients add up in an order that autograd chooses: equal within rounding, of the largest."""
    scale = a.abs().max().item() if a.numel() else 0.0
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5 * scale, equal_nan=True)


def _equal(a: T, b: T) -> bool:
    a, b = comparable(a), comparable(b)
    if a.device.type != "cpu":
        return torch.allclose(a, b, equal_nan=True)
    return torch.equal(a, b) or (a.is_floating_point() and torch.equal(a.nan_to_num(), b.nan_to_num()))


def _run(model: nn.Module, arguments: dict[str, Any], gradients: bool) -> tuple[list[T], list[T] | None]:
    """The outputs under seed 0, and the gradients of floating-point inputs for the sum of outputs, if any."""

    def leaf(t: T) -> T:
        return t.detach().clone().requires_grad_() if t.is_floating_point() and gradients else t

    given = map_tensors(leaf, arguments)
    with torch.random.fork_rng(), torch.set_grad_enabled(gradients), _without_fast_path():
        torch.manual_seed(0)
        outputs = tensors(model(**given))
    asked = [t for t in tensors(given) if t.requires_grad]
    total = [o.float().sum() for o in outputs if o.requires_grad]
    if not gradients or not asked or not total:
        return [o.detach() for o in outputs], []
    try:
        grads = torch.autograd.grad(sum(total), asked, allow_unused=True)  # type: ignore[arg-type]
    except RuntimeError:  # writes in place can make a model that runs, and has no gradient
        return [o.detach() for o in outputs], None
    return [o.detach() for o in outputs], [torch.zeros(()) if g is None else g for g in grads]


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """`nn.TransformerEncoderLayer` in eval has a fast path that skips its submodules; it differs by rounding."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
