"""The proof of a model with tuned parts: at the start it computes what the original does."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import nn

from utcompile.errors import GuardError, UtcError
from utcompile.graph.nested import map_tensors
from utcompile.parts.calling import computed, same_outputs
from utcompile.parts.captured import CapturedParts, copy_with_modes
from utcompile.rewrite import TunedModule, disable_tuners

IDENTITY = "identity at the start, on the example inputs"


def prove(captured: CapturedParts, model: nn.Module, parts: Mapping[str, TunedModule]) -> str:
    """Compare the whole model with the original, in the modes of that: on the example inputs, and on others like them.

    What the code around the parts has kept of an earlier call of a part (features that a hook stores) is right on the
    inputs of that call alone. Where tuners are not the identity at the start, both are compared with the tuners off.

    Args:
        captured: the parts, and the original around them.
        model: with tuned parts; it runs as a copy, in which whatever its Python code counts or keeps is left.
        parts: the tuned parts by path.

    Returns:
        What was proven.

    Raises:
        UtcError: the outputs differ, or the model does not run any more.
    """
    if not captured.compared:
        return "unproven: it was captured with verify='shapes'"
    unproven = [f"{path}: {part.proven}" for path, part in parts.items() if part.proven.startswith("unproven")]
    call = captured.call()
    for given, is_example in ((call, True), (_varied(call), False)):
        expected = _expected(captured, given, must_run=is_example)
        if expected is None:
            continue
        found = _found(captured, model, given, off=bool(unproven), must_run=is_example)
        if found is not None and not same_outputs(found, expected):
            raise UtcError(
                "the model with tuned parts has other outputs at the start than the original",
                where=None if is_example else "on inputs that differ from the example's by some percent",
                why="each part computes what it did, so the code around them reads something else of a part: its "
                "class, a value that it or a hook of it keeps, or what it writes into an input",
                fix="let `within=` name a larger part, which contains that code; or report the model",
                code="tune/not-identity",
            )
    return f"unproven: {unproven[0]}" if unproven else IDENTITY


def _varied(call: Mapping[str, object]) -> dict[str, object]:
    """Other numbers of the same kind: floating-point ones changed by up to a tenth, the order of the others turned."""
    generator = torch.Generator().manual_seed(0)

    def vary(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.layout != torch.strided or not tensor.numel():
            return tensor
        if tensor.is_floating_point():
            factor = 0.9 + 0.2 * torch.rand(tensor.shape, generator=generator)
            return (tensor.detach() * factor.to(tensor.device)).to(tensor.dtype)
        return tensor.roll(1, -1) if tensor.dim() > 1 else tensor

    return map_tensors(vary, dict(call))


def _expected(captured: CapturedParts, call: Mapping[str, object], *, must_run: bool) -> list[torch.Tensor] | None:
    """What the original computes; None where it does not take such inputs."""
    try:
        return computed(copy_with_modes(captured.model), call)
    except Exception:  # whatever a model's forward raises
        if must_run:
            raise
        return None


def _found(
    captured: CapturedParts, model: nn.Module, call: Mapping[str, object], *, off: bool, must_run: bool
) -> list[torch.Tensor] | None:
    """What the model with tuned parts computes; None where a guard of a part refuses inputs that it may refuse."""
    copied = copy_with_modes(model)
    for part in copied.modules():
        if isinstance(part, TunedModule):
            part.eval()
    try:
        with disable_tuners(copied) if off else nullcontext():
            return computed(copied, call)
    except GuardError:
        if must_run:
            raise
        return None
    except UtcError:
        raise
    except Exception as error:  # whatever the code around the parts raises
        raise UtcError(
            f"{type(captured.model).__name__} does not run with captured parts: {type(error).__name__}: {error}",
            why="the code around the parts uses something of a part that its graph has not: a part is called, and its "
            "methods, members, private attributes, and what it leaves in other objects are those of a graph",
            fix="let `within=` name the submodules that this code calls, or a larger part, which contains it",
            code="parts/unsupported",
        ) from error
