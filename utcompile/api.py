"""The public verbs that join the rooms: `match` with a rewriter, and `compile`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from utcompile.capture import capture
from utcompile.capture.inputs import Examples, bind_inputs
from utcompile.capture.nested import map_tensors, tensors
from utcompile.capture.untouched import random_numbers_kept, seed, values_kept
from utcompile.errors import UtcError
from utcompile.graph import UtcGraphModule
from utcompile.match import Plan
from utcompile.match import match as find
from utcompile.rewrite import TunedModule, apply_plan, check_learning
from utcompile.rules import RuleSet


def match(captured: UtcGraphModule, rules: RuleSet | str | Path, vars: Mapping[str, Any] | None = None) -> Plan:
    """Find every place that a rule set speaks of; `plan.apply()` inserts the tuners.

    Args:
        captured: a `CapturedModule`.
        rules: a `RuleSet`, a path, a shipped name such as `u_tuning/dual`, or YAML text (with a newline).
        vars: values for the rule file's `vars:`.

    Raises:
        UtcError: a rule is malformed, matches fewer or more places than it expects, or its tuner does not fit a place.
    """
    if not isinstance(captured, UtcGraphModule):
        raise UtcError(
            f"match takes a CapturedModule, not {type(captured).__name__}", fix="capture the model first: utc.capture"
        )
    if isinstance(captured, TunedModule):
        raise UtcError("this is a TunedModule already", fix="match the captured model, with all the rules in one file")
    return find(captured, rules, vars, apply_plan)


def compile(
    model: nn.Module,
    rules: RuleSet | str | Path,
    example_inputs: Examples,
    vars: Mapping[str, Any] | None = None,
    dynamic: Any = None,
    base: Literal["frozen"] = "frozen",
    verify: Literal["values", "full", "shapes"] = "values",
) -> TunedModule:
    """Capture a model, match rules and insert their tuners.

    Where every tuner is the identity at the start, the result's outputs on the example inputs are proven equal to the
    model's, bit for bit. A tuner of each kind takes two steps alone, in which each of its parameters must get a finite
    gradient other than zero. Neither with `verify="shapes"`.

    Raises:
        UtcError: as `capture` and `match`; or a tuner that should be the identity at the start changes an output; or a
            tuner has a parameter that gets no gradient.

    Example:
        >>> import torch, utcompile as utc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> tuned = utc.compile(model, "lora/all_linear", (torch.randn(2, 4),), vars={"r": 2})
        >>> tuned.print_trainable_parameters()
        trainable params: 42 || all params: 82 || trainable%: 51.2195
    """
    ruleset = RuleSet.load(rules, vars)  # a mistake there is found before the model is captured
    captured = capture(model, example_inputs, dynamic, base, verify)
    plan = match(captured, ruleset)
    tuned: TunedModule = plan.apply()
    if verify != "shapes":
        check_learning(plan.sites, tuned)
        _prove_identity(captured, tuned, bind_inputs(captured, example_inputs))
    return tuned


def _computed(module: nn.Module, arguments: dict[str, Any]) -> list[torch.Tensor]:
    """The outputs of a call that leaves no trace in buffers, inputs or random numbers."""
    with torch.no_grad(), random_numbers_kept(module) as gpus, values_kept(module) as memory:
        seed(gpus)
        outputs = tensors(module(**map_tensors(torch.clone, arguments)))
        return [o.clone() if memory.shares(o) else o for o in outputs]


def _prove_identity(captured: nn.Module, tuned: TunedModule, arguments: dict[str, Any]) -> None:
    if not all(tuned.tuner(s.id).identity_at_start for s in tuned.sites):
        return
    tuned.eval()
    trainable = [p for p in tuned.parameters() if p.requires_grad]
    for parameter in trainable:  # torch takes another kernel where a weight wants a gradient, under no_grad too
        parameter.requires_grad_(False)
    try:
        expected, found = _computed(captured, arguments), _computed(tuned, arguments)
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
    tuned.train()
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        if not torch.equal(a.nan_to_num(), b.nan_to_num()):
            raise UtcError(
                f"output {i} of the tuned model differs at the start by {(a - b).abs().max().item():.3g}",
                why="a tuner that declares itself the identity at the start is not",
                fix="set `identity_at_start = False` on your tuner, or initialise its last factor with zeros",
            )
