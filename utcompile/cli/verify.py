"""`utcompile verify`: prove again that an ONNX file computes what its run computes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from utcompile.cli import output
from utcompile.cli.options import BatchSizes, Json, OptionalModel, RunFolder, Trust, Weights, batches_of, examples

EXAMPLES = examples(
    "utcompile verify model.onnx run/",
    "utcompile verify model.onnx run/ --tolerance 1e-5 --batch-sizes 1,16 --json",
)


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The ONNX file.")],
    run: RunFolder,
    tolerance: Annotated[float | None, typer.Option(help="Relative to the largest output; 1e-4 by default.")] = None,
    batch_sizes: BatchSizes = None,
    seconds: Annotated[float, typer.Option("--timeout", min=1, help="Seconds until a run of FILE is stopped.")] = 600,
    model: OptionalModel = None,
    weights: Weights = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Compare an ONNX file with the run it was exported from, its tuners in place and not folded."""
    from utcompile.cli.runs import open_run
    from utcompile.deploy import session, verify_onnx

    sizes = batches_of(batch_sizes)
    session(file)  # a file that is none is found before the model is built
    opened = open_run(run, model, weights, trust)
    report = verify_onnx(file, opened.tuned, opened.example, sizes, tolerance, seconds=seconds)
    if json:
        comparisons = [{**vars(entry), "passed": entry.passed} for entry in report.outputs]
        output.emit({"passed": report.passed, "max_error": report.max_error, "comparisons": comparisons})
    elif report.passed:
        output.say(str(report))
    report.require()
