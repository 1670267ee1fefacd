"""`utcompile suggest`: which shipped rules fit a model, and which to take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from utcompile.cli import output
from utcompile.cli.complete import choices
from utcompile.cli.early import check_example, check_model
from utcompile.cli.options import (
    Example,
    InputShapes,
    InputSize,
    Json,
    Model,
    NumClasses,
    examples,
    given,
    size_of,
)
from utcompile.errors import UtcError, did_you_mean

if TYPE_CHECKING:
    from rich.table import Table

    from utcompile.cli.suggestions import Suggestion

EXAMPLES = examples(
    "utcompile suggest -m timm:resnet50",
    "utcompile suggest -m timm:vit_base_patch16_224 --for memory --num-classes 10",
    "utcompile suggest -m hf:bert/ --for parameters --json",
)
NEEDS = ("latency", "memory", "parameters", "accuracy")
_SHOWN = 12
_OWN_MEMORY = (
    "saved: by the tuners, per sample. A gradient through the backbone keeps more, from the first tuner on: "
    "see `utcompile explain --memory`"
)


def suggest(
    model: Model,
    need: Annotated[
        str, typer.Option("--for", metavar="NEED", help=f"{', '.join(NEEDS)}.", autocompletion=choices(*NEEDS))
    ] = "latency",
    num_classes: NumClasses = None,
    input_size: InputSize = None,
    example: Example = None,
    input_shapes: InputShapes = None,
    everything: Annotated[bool, typer.Option("--all", help="Also the rules after the first twelve.")] = False,
    json: Json = False,
) -> None:
    """Show which shipped rules fit a model, what each costs, and which to take for a need. Weights are random."""
    if need not in NEEDS:
        raise UtcError(f"unknown need {need!r}", fix=did_you_mean(need, NEEDS), code="arguments/value")
    check_model(model)
    check_example(example, input_shapes)
    size = size_of(input_size)
    from utcompile.cli.models import ModelChoice
    from utcompile.cli.suggestions import ranked, suggestions

    choice = ModelChoice(model, num_classes, input_size=size, **given(example, input_shapes))
    fitting, refused = suggestions(choice)
    fitting = ranked(fitting, need)
    if json:
        output.emit(
            {
                "model": choice.spec,
                "for": need,
                "fitting": [s.as_dict(need) for s in fitting],
                "refused": refused,
            }
        )
        return
    if not fitting:
        output.say("no shipped rules fit this model")
    else:
        shown = fitting if everything else fitting[:_SHOWN]
        output.stdout().print(table(shown))
        if len(shown) < len(fitting):
            output.say(f"and {len(fitting) - len(shown)} more: --all", "dim")
        best = fitting[0]
        output.say(f"\nfor {need}: {best.name}, because {best.reason(need)}")
        if need == "memory":
            output.say(_OWN_MEMORY, "dim")
    for line in grouped(refused):
        output.say(line, "dim")
    if fitting:
        output.say(f"next: utcompile explain -m {model} -r {fitting[0].name}", "dim")


def grouped(refused: dict[str, str]) -> list[str]:
    """The rules that do not fit, by the reason."""
    reasons: dict[str, list[str]] = {}
    for name, why in refused.items():
        reasons.setdefault(why, []).append(name)
    return [f"not here ({why}): {', '.join(names)}" for why, names in reasons.items()]


def table(fitting: list[Suggestion]) -> Table:
    """One row per rule file, in the order given."""
    from rich.table import Table

    from utcompile.text import amount

    found = Table("rules", box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    found.add_column("sites", justify="right")
    found.add_column("parameters", justify="right")
    found.add_column("FLOPs", justify="right")
    found.add_column("saved", justify="right")
    found.add_column("when folded", overflow="fold")
    for s in fitting:
        share = f"{100 * s.flops_share:.1f} %" if s.flops else "0"
        saved = amount(s.saved_bytes, "B") if s.saved_bytes else "0"
        found.add_row(s.name, str(s.sites), f"{s.parameters:,}", share, saved, s.folds_text)
    return found
