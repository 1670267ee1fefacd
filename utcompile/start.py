"""What every tuned model is checked for when it is made, whichever way leads to it.

Nothing where the capture computed nothing (`verify="shapes"`): then the result says `unproven`.

1. Each parameter of each kind of tuner gets a gradient (`rewrite/learn.py`).
2. Where all tuners say that they are the identity at the start, the outputs are the base's, bit for bit, on the example
   inputs that the capture has kept.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import nn

from utcompile.errors import UtcError
from utcompile.graph.nested import map_tensors, tensors
from utcompile.graph.values_kept import values_kept
from utcompile.matching import PlanData, TunerDtype
from utcompile.memory import MemoryPlan
from utcompile.recording.example import Example
from utcompile.recording.untouched import random_numbers_kept, seed
from utcompile.rewrite import TunedModule, apply_plan, check_learning

IDENTITY = "identity at the start, on the example inputs"


def insert_and_check(plan: PlanData, example: Example | None = None) -> TunedModule:
    """Insert the tuners of a plan and check what they promise; `tuned.proven` says what was proven.

    Every door leads here: `plan.apply()`, `utc.compile` and the command line.

    Requires: what `apply_plan` requires.
    Ensures: what `apply_plan` ensures; and, where the capture computed something, that each parameter of each kind of
    tuner gets a gradient, and that tuners which say that they are the identity at the start are it.

    Args:
        plan: of a captured or folded module.
        example: what to compare on; by default the example that the module was captured with.

    Raises:
        UtcError: one of these does not hold.
    """
    if plan.tuner_dtype not in get_args(TunerDtype):
        raise UtcError(
            f"tuner_dtype is {plan.tuner_dtype!r}",
            fix="say 'float32', or 'base' for the model's own dtype",
            code="arguments/value",
        )
    tuned = apply_plan(plan)
    tuned.memory = MemoryPlan()
    example = example or plan.module.example_inputs
    if example is not None and not example.compared:
        tuned.proven = "unproven: it was captured with verify='shapes'"
        return tuned
    check_learning(plan.sites, tuned)
    tuned.proven = _prove(plan, tuned, example)
    return tuned


def _prove(plan: PlanData, tuned: TunedModule, example: Example | None) -> str:
    others = dict.fromkeys(s.tuner for s in tuned.sites if not tuned.tuner(s.id).identity_at_start)
    if others:
        return f"unproven: {', '.join(others)} tuners are not the identity at the start"
    if example is None:
        return "unproven: the module was captured without example inputs"
    _compare(plan.module, tuned, example.arguments(plan.module.dtype, plan.module.device))
    return IDENTITY


def _compare(captured: nn.Module, tuned: TunedModule, arguments: dict[str, object]) -> None:
    tuned.eval()
    trainable = [p for p in tuned.parameters() if p.requires_grad]
    for parameter in trainable:  # torch takes another kernel where a weight requires a gradient, under no_grad too
        parameter.requires_grad_(False)
    try:
        expected, found = _computed(captured, arguments), _computed(tuned, arguments)
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
    tuned.train()
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        if not _equal(a, b):
            raise UtcError(
                f"output {i} of the tuned model differs at the start by {(a - b).abs().max().item():.3g}",
                why="a tuner that declares itself the identity at the start is not",
                fix="set `identity_at_start = False` on your tuner, or initialise its last factor with zeros",
                code="tune/not-identity",
            )


def _computed(module: nn.Module, arguments: dict[str, object]) -> list[torch.Tensor]:
    """The outputs of a call that leaves no trace in buffers, inputs or random numbers."""
    with torch.no_grad(), random_numbers_kept(module) as gpus, values_kept(module) as memory:
        seed(gpus)
        outputs = tensors(module(**map_tensors(torch.clone, arguments)))
        return [o.clone() if memory.shares(o) else o for o in outputs]


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num())
