"""`utcompile explain`: what each rule finds, adds, and nearly found."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from utcompile.cli import output
from utcompile.cli.options import InputSize, Json, Model, NumClasses, Rules, Var, examples, size_of, variables

EXAMPLES = examples(
    "utcompile explain -m timm:convnext_tiny -r u_tuning/dual_foldable",
    "utcompile explain -m timm:resnet50 -r lora/all_conv --var r=4 --at layer1.0",
    "utcompile explain -m net.py:make -r my_rules.yaml --json",
)


def explain(
    model: Model,
    rules: Rules,
    at: Annotated[str | None, typer.Option("--at", metavar="PATH", help="Only what concerns this module.")] = None,
    var: Var = None,
    num_classes: NumClasses = None,
    input_size: InputSize = None,
    json: Json = False,
) -> None:
    """Show what each rule finds in a model, what it adds there, and where it nearly matched."""
    import utcompile as utc
    from utcompile.cli.models import ModelChoice
    from utcompile.rules import Expect, RuleSet

    ruleset = RuleSet.load(rules, vars=variables(var))
    choice = ModelChoice(model, num_classes, input_size=size_of(input_size))
    captured = utc.capture(choice.build(), (choice.example(),), verify="shapes")
    _check_place(captured, at)
    # A rule that finds too little is what this verb is for: it is explained first, and fails at the end.
    lenient = replace(ruleset, rules=tuple(replace(r, expect=Expect(optional=True, at_least=0)) for r in ruleset.rules))
    plan = utc.match(captured, lenient)
    if json:
        output.emit({**plan.to_dict(), "explanation": plan.explain(at)})
    else:
        output.say(str(plan))
        output.say("\n" + plan.explain(at))
    utc.match(captured, ruleset)


def _check_place(captured: object, at: str | None) -> None:
    from torch import nn

    from utcompile.errors import UtcError, did_you_mean

    assert isinstance(captured, nn.Module)
    known = {path for path, _ in captured.named_modules()}
    if at is not None and at not in known:
        raise UtcError(f"the model has no module {at!r}", fix=did_you_mean(at, known))
