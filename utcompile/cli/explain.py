"""`utcompile explain`: what each rule finds, adds, and nearly found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from utcompile.cli import output
from utcompile.cli.drawings import DrawingFile, PageFile, check_targets, draw, draw_parts
from utcompile.cli.early import check_example, check_model, check_rules
from utcompile.cli.options import (
    Example,
    InputShapes,
    InputSize,
    Json,
    Model,
    NumClasses,
    Rules,
    Trains,
    Var,
    Within,
    examples,
    given,
    pairs_of,
    size_of,
    trained,
    variables,
)

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from utcompile.matching import Site
    from utcompile.matching.explain import Explanation
    from utcompile.memory import MemoryPlan
    from utcompile.parts import CapturedParts
    from utcompile.plan import Plan
    from utcompile.rules import RuleSet

EXAMPLES = examples(
    "utcompile explain -m timm:convnext_tiny -r u_tuning/dual_foldable",
    "utcompile explain -m timm:resnet50 -r lora/all_conv --var r=4 --at layer1.0",
    "utcompile explain -m timm:resnet50 -r lora/all_conv --memory --batch-size 8",
    "utcompile explain -m timm:resnet50 -r convnet/residual_parallel --html plan.html --svg plan.svg",
    "utcompile explain -m net.py:make -r my_rules.yaml --json",
)
_WIDE = 100  # columns, from which on two shapes fit side by side


def explain(
    model: Model,
    rules: Rules,
    at: Annotated[str | None, typer.Option("--at", metavar="PATH", help="Only what concerns this module.")] = None,
    var: Var = None,
    within: Within = None,
    train: Trains = None,
    num_classes: NumClasses = None,
    input_size: InputSize = None,
    example: Example = None,
    input_shapes: InputShapes = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Also how much work a training step takes in less and less memory.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Of that step.")] = 8,
    svg: DrawingFile = None,
    html: PageFile = None,
    json: Json = False,
) -> None:
    """Show what each rule finds in a model, what it adds there, and where it nearly matched."""
    check_targets(svg, html)
    check_model(model)
    check_rules(rules)
    check_example(example, input_shapes)
    pairs_of(var)
    size = size_of(input_size)
    import utcompile as utc
    from utcompile.cli.memory_curve import show_curve
    from utcompile.cli.models import ModelChoice
    from utcompile.cli.parts import check_one_graph
    from utcompile.matching import require_sites
    from utcompile.rules import RuleSet

    check_one_graph(within, memory=memory, svg=svg)

    ruleset = RuleSet.load(rules, vars=variables(var), train=trained(train))
    choice = ModelChoice(model, num_classes, input_size=size, **given(example, input_shapes))
    if within:
        _explain_parts(
            utc.capture_parts(choice.build(), choice.inputs(), within, verify="shapes"), ruleset, at, html, json
        )
        return
    captured = utc.capture(choice.build(), choice.inputs(), verify="shapes")
    plan = utc.match(captured, _lenient(ruleset))
    explanation = plan.explanation(at)
    step = _step(plan, choice.example(batch_size)) if memory and (plan.sites or plan.trained) else None
    draw(plan, svg, html)
    if json:
        told = {"memory": step.to_dict()} if step else {}
        output.emit({**plan.to_dict(), "explanation": explanation.to_dict(), **told})
    else:
        _show(plan, explanation, {} if at else plan.sizes)
        if step:
            show_curve(step, batch_size)
    require_sites(utc.match(captured, ruleset))


def _explain_parts(captured: CapturedParts, ruleset: RuleSet, at: str | None, html: Path | None, json: bool) -> None:
    import utcompile as utc
    from utcompile.plan_of_parts import PartsPlan

    plan = PartsPlan.of(captured, _lenient(ruleset), required=False)
    draw_parts(plan, html)
    found = plan.explanations(at)
    if json:
        output.emit({**plan.to_dict(), "explanation": {path: one.to_dict() for path, one in found.items()}})
    else:
        for path, explanation in found.items():
            output.say(f"part {path}")
            one = plan.plans.get(path) or plan.empty[path]
            _show(one, explanation, {} if at else one.sizes)
            output.say("")
        output.say("\n".join(plan.summary()))
    utc.match(captured, ruleset)


def _lenient(ruleset: RuleSet) -> RuleSet:
    """A rule that finds too little is what this verb is for: it is explained first, and fails at the end."""
    from utcompile.rules import Expect

    none = Expect(optional=True, at_least=0)
    return replace(ruleset, rules=tuple(replace(rule, expect=none) for rule in ruleset.rules))


def _show(plan: Plan, explanation: Explanation, sizes: Mapping[str, int]) -> None:
    shown = [site for rule in explanation.rules for site in rule.sites]
    if shown or sizes:
        output.stdout().print(_table(plan, shown, sizes))
        output.say("")
    output.say("\n".join([*plan.summary(), "", str(explanation)]))


def _step(plan: Plan, images: Tensor) -> MemoryPlan:
    """What a training step keeps, and could keep."""
    from utcompile.memory import MemoryPlan

    return MemoryPlan().surveyed(plan.apply(), (images,))


def _table(plan: Plan, shown: Sequence[Site], trained: Mapping[str, int]) -> Table:
    """A row for the sites of each repeated block; at 80 columns only paths and insertions wrap."""
    from rich.table import Table

    from utcompile.text import run

    arrow = " -> " if output.stdout().width >= _WIDE else "\n-> "
    rows = [(sites[0], run([s.path for s in sites]), str(len(sites))) for sites in _alike(plan, shown)]
    longest = max([len(at) for _, at, _ in rows] + [len(name) for name in trained], default=0)
    table = Table("rule", box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("at", overflow="fold", no_wrap=longest <= 22)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("inserts")
    table.add_column("shape", no_wrap=True)
    for name in ("params", "FLOPs", "saved"):
        table.add_column(name, justify="right", no_wrap=True)
    for first, at, number in rows:
        shapes = [text.replace(", ", ",") for text in (first.reads, first.writes)]
        what = (first.rule, at, number, f"{first.form} {first.tuner}", arrow.join(dict.fromkeys(shapes)))
        table.add_row(*what, f"{first.parameters:,}", *plan.cost.shown(first.id))
    for name, size in trained.items():
        table.add_row("train", name, "", "itself", "", f"{size:,}", "", "")
    return table


def _alike(plan: Plan, shown: Sequence[Site]) -> list[list[Site]]:
    """The sites of a rule in the copies of one block, where shapes and costs are the same."""
    from utcompile.text import alike

    found: dict[tuple[object, ...], list[Site]] = {}
    for s in shown:
        key = (s.rule, alike(s.path), s.form, s.tuner, s.reads, s.writes, s.parameters, plan.cost.shown(s.id))
        found.setdefault(key, []).append(s)
    return list(found.values())
