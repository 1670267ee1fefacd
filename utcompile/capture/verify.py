"""Proof that a captured graph computes what the model computes."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn

from utcompile.errors import UtcError


def compare_outputs(model: nn.Module, captured: nn.Module, arguments: dict[str, Any], what: str) -> None:
    """Run both on the same inputs and compare bit for bit (on a CPU; elsewhere within rounding).

    Raises:
        UtcError: an output differs; it names which, and by how much.
    """
    with torch.no_grad(), torch.random.fork_rng():
        expected, found = (leaves(m(**arguments)) for m in (model, captured))
    if len(expected) != len(found):
        raise UtcError(f"the capture yields {len(found)} tensors, the model {len(expected)}", where=what)
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise UtcError(
                f"output {i} of the capture is {b.dtype} {list(b.shape)}, the model's {a.dtype} {list(a.shape)}",
                where=what,
            )
        same = (
            torch.equal(a.nan_to_num(), b.nan_to_num())
            if a.device.type == "cpu"
            else torch.allclose(a, b, equal_nan=True)
        )
        if not same:
            largest = (a - b).abs().max().item() if a.is_floating_point() else float("nan")
            raise UtcError(
                f"output {i} of the capture differs from the model's by {largest:.3g}",
                where=what,
                why="the model reads something that recording cannot see, or is not deterministic",
                fix="check that two runs of the model itself agree; if they do, please report this model",
            )


def leaves(out: Any) -> list[torch.Tensor]:
    """The tensors of any output structure, dataclasses and `ModelOutput` too."""
    if is_dataclass(out) and not isinstance(out, type):
        return [t for f in fields(out) for t in leaves(getattr(out, f.name))]
    if isinstance(out, (list, tuple)):
        return [t for v in out for t in leaves(v)]
    if isinstance(out, dict):
        return [t for v in out.values() for t in leaves(v)]
    return [t for t in pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
