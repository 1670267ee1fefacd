"""`utcompile report`: how a run went, as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from utcompile.cli import output
from utcompile.cli.drawings import check_targets
from utcompile.cli.early import check_data
from utcompile.cli.early_runs import check_run
from utcompile.cli.options import Json, OptionalModel, RunFolder, Trust, Weights, examples

EXAMPLES = examples(
    "utcompile report run/",
    "utcompile report run/ -o run.html --no-fold",
    "utcompile report run/ -d photos/ -m net.py:make",
)


def report(
    run: RunFolder,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="The page to write; report.html in RUN by default."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", "-d", metavar="DATA", help="The data, if they are not where they were.")
    ] = None,
    fold: Annotated[bool, typer.Option(help="Fold the tuners and measure latency for the page.")] = True,
    model: OptionalModel = None,
    weights: Weights = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Write a page on a run: curves, confusion, worst and best predictions, costs, folding, and what was inserted.

    The page is one file that works offline, light and dark.
    """
    check_targets(out)
    check_run(run, model, weights, trust=trust)
    check_targets(run / "report.html" if out is None else None)
    if data is not None:
        check_data(data, "")
    from utcompile.cli.run_report import write_report

    said = write_report(run, out, model=model, weights=weights, trust=trust, data=data, fold=fold)
    if json:
        output.emit(said)
        return
    for note in said["notes"]:
        output.say(f"note: {note}")
    output.say(f"written: {said['page']}")
