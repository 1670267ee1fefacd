"""`--within`: the verbs on models of which parts are tuned, and the rest of the Python stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

import utcompile as utc
from utcompile.cli import output
from utcompile.errors import UtcError

if TYPE_CHECKING:
    from utcompile.plan import Plan
    from utcompile.plan_of_parts import PartsPlan
    from utcompile.recording.inputs import Examples
    from utcompile.rules import RuleSet

Example = tuple[torch.Tensor, ...] | Mapping[str, torch.Tensor]


def plan_of(model: nn.Module, example: Examples, rules: RuleSet, within: Sequence[str]) -> Plan | PartsPlan:
    """What rules insert into a model, or into the parts of it that `--within` names; remarks are printed."""
    if not within:
        return utc.match(utc.capture(model, example), rules)
    plan = utc.match(utc.capture_parts(model, example, within), rules)
    for note in plan.notes:
        output.progress(f"note: {note}")
    return plan


def captured_parts(model: nn.Module, example: Examples, within: Sequence[str]) -> dict[str, utc.CapturedModule]:
    """The graphs that a verb shows, by path: of the parts, or of the whole model under the empty path."""
    return dict(utc.capture_parts(model, example, within).parts) if within else {"": utc.capture(model, example)}


def check_one_graph(within: Sequence[str] | None, **given: object) -> None:
    """Raise where an option is given that is for one graph.

    Raises:
        UtcError: one is.
    """
    for name, value in given.items():
        if within and value:
            raise UtcError(
                f"--{name} is for one graph, and --within makes one of each part",
                fix=f"leave out --{name}, or --within",
                code="parts/unsupported",
            )


def save_program_of_parts(folded: nn.Module, example: Example, path: Path) -> str:
    """Write a folded model of the user's class as a program of `torch.export`; returns why not, where it is none."""
    args, kwargs = (example, {}) if isinstance(example, tuple) else ((), dict(example))
    batch = torch.export.Dim("batch")
    given = [*args, *kwargs.values()]
    rows = given[0].shape[0] if given[0].dim() else None
    shapes = [{0: batch} if t.dim() and t.shape[0] == rows else None for t in given]
    try:
        with torch.no_grad():
            program = torch.export.export(
                folded, args, kwargs, dynamic_shapes=dict(zip(kwargs, shapes, strict=True)) if kwargs else tuple(shapes)
            )
        torch.export.save(program, path)
    except Exception as error:  # whatever torch raises about Python that it cannot export
        return f"no {path.name}: torch cannot export the code around the parts ({type(error).__name__})"
    return ""
