"""The public verbs that join the rooms: `match` and `compile`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar, overload

from torch import nn

from utcompile.errors import UtcError, known_arguments
from utcompile.graph import UtcGraphModule
from utcompile.matching import TunerDtype
from utcompile.matching import match as find
from utcompile.measured_forms import decide_forms
from utcompile.memory import read_budget
from utcompile.parts import CapturedParts, capture_parts
from utcompile.parts.named import Within
from utcompile.plan import Plan
from utcompile.plan_of_parts import PartsPlan
from utcompile.recording import capture
from utcompile.recording.example import Example
from utcompile.recording.inputs import Dynamic, Examples, bind_inputs
from utcompile.rewrite import TunedModule
from utcompile.rules import RuleSet
from utcompile.start import insert_and_check

M = TypeVar("M", bound=nn.Module)
_VARS = "a value for the rule file's `vars:` is given as vars={{{name!r}: …}}"


@overload
def match(
    captured: UtcGraphModule,
    rules: RuleSet | str | Path,
    vars: Mapping[str, object] | None = ...,
    train: Sequence[str] | None = ...,
) -> Plan: ...
@overload
def match(
    captured: CapturedParts,
    rules: RuleSet | str | Path,
    vars: Mapping[str, object] | None = ...,
    train: Sequence[str] | None = ...,
) -> PartsPlan: ...
@known_arguments(_VARS)
def match(
    captured: UtcGraphModule | CapturedParts,
    rules: RuleSet | str | Path,
    vars: Mapping[str, object] | None = None,
    train: Sequence[str] | None = None,
) -> Plan | PartsPlan:
    """Find every place that matches a rule set; `plan.apply()` inserts the tuners.

    Args:
        captured: a `CapturedModule`, or the captured parts of a model (`utc.capture_parts`). Over several parts,
            `select` and `expect` count as in one graph; paths in rules are those inside a part.
        rules: a `RuleSet`, a path, a shipped name such as `u_tuning/dual`, or YAML text (with a newline).
        vars: values for the rule file's `vars:`.
        train: what is trained next to the tuners, instead of the file's `train:`; nothing with an empty list.

    Raises:
        UtcError: a rule is malformed, matches fewer or more places than it expects, or its tuner does not fit a place.
    """
    if isinstance(captured, CapturedParts):
        return PartsPlan.of(captured, RuleSet.load(rules, vars, train=train))
    if not isinstance(captured, UtcGraphModule):
        raise UtcError(
            f"match takes a CapturedModule, not {type(captured).__name__}",
            fix="capture the model first: utc.capture",
            code="arguments/type",
        )
    if isinstance(captured, TunedModule):
        raise UtcError(
            "this is a TunedModule already",
            why="tuners that are not folded have no second layer of tuners",
            fix="put all the rules in one file and match the captured model; or fold first, and tune the folded model",
            code="arguments/type",
        )
    return Plan.of(decide_forms(find(captured, rules, vars, train)))


@overload
def compile(
    model: nn.Module,
    rules: RuleSet | str | Path,
    example_inputs: Examples,
    vars: Mapping[str, object] | None = ...,
    dynamic: Dynamic | None = ...,
    base: Literal["frozen", "follow"] = ...,
    verify: Literal["values", "full", "shapes"] = ...,
    train: Sequence[str] | None = ...,
    tuner_dtype: TunerDtype = ...,
    memory: float | int | str | None = ...,
    within: None = ...,
) -> TunedModule: ...
@overload
def compile(
    model: M,
    rules: RuleSet | str | Path,
    example_inputs: Examples,
    vars: Mapping[str, object] | None = ...,
    dynamic: Dynamic | None = ...,
    base: Literal["frozen", "follow"] = ...,
    verify: Literal["values", "full", "shapes"] = ...,
    train: Sequence[str] | None = ...,
    tuner_dtype: TunerDtype = ...,
    memory: None = ...,
    *,
    within: Within,
) -> M: ...
@known_arguments(_VARS)
def compile(
    model: nn.Module,
    rules: RuleSet | str | Path,
    example_inputs: Examples,
    vars: Mapping[str, object] | None = None,
    dynamic: Dynamic | None = None,
    base: Literal["frozen", "follow"] = "frozen",
    verify: Literal["values", "full", "shapes"] = "values",
    train: Sequence[str] | None = None,
    tuner_dtype: TunerDtype = "float32",
    memory: float | int | str | None = None,
    within: Within | None = None,
) -> nn.Module:
    """Capture a model, match rules and insert their tuners.

    Where every tuner is the identity at the start, the result's outputs on the example inputs are proven equal to the
    model's, bit for bit; `tuned.proven` says so, or why it is unproven, as with `verify="shapes"`. A tuner of each kind
    takes two steps alone, in which each of its parameters must get a finite gradient other than zero. `plan.apply()`
    checks the same.

    A module that was captured or folded before is tuned as it is: tuners that an earlier fold kept stay in it, frozen.

    With `within=`, only the submodules that it names are captured and tuned, and the rest of the model's Python runs as
    it is: losses, loops, `generate`. The result is the user's class, a copy that shares the frozen memory, with a
    `TunedModule` at each part's path. What `train=` names may be outside of the parts, too.

    Args:
        tuner_dtype: of what trains, on a base in float16 or bfloat16: "float32", or "base" for the model's own dtype.
        memory: a budget for a training step with the batch of the example inputs: a share of what it takes without a
            plan, as 0.5, or a size, as "8GB" (`TunedModule.plan_memory`). Without it, less is kept where that costs
            little time.
        within: globs of module paths, one or several: the parts to tune. The other arguments are those of `capture` and
            `match`.

    Raises:
        UtcError: as `capture` and `match`; or the budget is too small; or a tuner that should be the identity at the
            start changes an output; or a tuner has a parameter that gets no gradient.

    Example:
        >>> import torch, utcompile as utc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> tuned = utc.compile(model, "lora/all_linear", (torch.randn(2, 4),), vars={"r": 2})
        >>> tuned.print_trainable_parameters()
        trainable params: 42 || all params: 82 || trainable%: 51.2195
    """
    ruleset = RuleSet.load(rules, vars, train=train)  # a mistake there is found before the model is captured
    if memory is not None:
        read_budget(memory)
    if within is not None:
        _refuse_budget(memory)
        parts = capture_parts(model, example_inputs, within, dynamic, base, verify)
        return PartsPlan.of(parts, ruleset).apply(tuner_dtype)
    if isinstance(model, UtcGraphModule):
        tuned = _compile_again(model, ruleset, example_inputs, dynamic, base, verify, tuner_dtype)
    else:
        tuned = match(capture(model, example_inputs, dynamic, base, verify), ruleset).apply(tuner_dtype)
    if memory is not None:
        tuned.plan_memory(memory, example_inputs)
    return tuned


def _refuse_budget(memory: float | int | str | None) -> None:
    if memory is not None:
        raise UtcError(
            "a budget of memory is for one graph, and within= makes one of each part",
            fix="leave out `memory=`, and plan a part: tuned.backbone.plan_memory(0.5)",
            code="arguments/value",
        )


def _compile_again(
    recorded: UtcGraphModule,
    rules: RuleSet,
    example_inputs: Examples,
    dynamic: Dynamic | None,
    base: str,
    verify: str,
    tuner_dtype: TunerDtype,
) -> TunedModule:
    """Tune a captured or folded module: it is a graph already, and tuners that an earlier fold kept stay in it."""
    if dynamic is not None or (base == "follow") != recorded.follows_mode:
        raise UtcError(
            "what varies in a recorded module, and whether it follows the mode, was decided when it was captured",
            fix="leave out `dynamic=` and `base=`, or compile the original model",
            code="arguments/type",
        )
    plan = replace(match(recorded, rules), tuner_dtype=tuner_dtype)
    example = Example.of(
        bind_inputs(recorded, example_inputs), compared=verify != "shapes", dtype=recorded.dtype, device=recorded.device
    )
    return insert_and_check(plan, example)
