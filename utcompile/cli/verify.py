"""`utcompile verify`: prove again that an ONNX file computes what its run computes, or its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from utcompile.cli import output
from utcompile.cli.early_runs import check_onnx, check_proof, check_providers, check_run
from utcompile.cli.options import BatchSizes, Json, OptionalModel, Providers, Trust, Weights, batches_of, examples

EXAMPLES = examples(
    "utcompile verify model.onnx run/",
    "utcompile verify model.onnx run/ --tolerance 1e-5 --batch-sizes 1,16 --json",
    "utcompile verify model.onnx run/ --providers cpu,cuda",
    "utcompile verify pets.onnx run1/ run2/",
)


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The ONNX file.")],
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="The folder that `utcompile train -o` wrote; all, for tasks.")
    ],
    tolerance: Annotated[float | None, typer.Option(help="Relative to the largest output; 1e-4 by default.")] = None,
    batch_sizes: BatchSizes = None,
    providers: Providers = "cpu",
    seconds: Annotated[float, typer.Option("--timeout", min=1, help="Seconds until a run of FILE is stopped.")] = 600,
    model: OptionalModel = None,
    weights: Weights = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Compare an ONNX file with the run it was exported from, its tuners in place and not folded."""
    sizes = batches_of(batch_sizes)
    check_proof(tolerance)
    check_providers(providers)
    check_onnx(file)
    for run in runs:
        check_run(run, model, weights, trust=trust)
    from utcompile.cli.runs import open_run
    from utcompile.deploy import OnnxModel, providers_named, verify_onnx, verify_tasks

    chosen = providers_named(providers)
    has_tasks = bool(OnnxModel(file).tasks)  # a file that is none is found before the model is built
    if len(runs) > 1 and not has_tasks:
        raise typer.BadParameter("the file has one model; give its run alone", param_hint="RUN")
    opened = open_run(runs[0], model, weights, trust, load=not has_tasks)
    for provider in chosen:
        if has_tasks:
            report = verify_tasks(file, opened.tuned, opened.example, runs, sizes, tolerance, provider=provider)
        else:
            report = verify_onnx(
                file, opened.tuned, opened.example, sizes, tolerance, seconds=seconds, provider=provider
            )
        if json:
            comparisons = [{**vars(entry), "passed": entry.passed} for entry in report.outputs]
            whole = {"passed": report.passed, "max_error": report.max_error, "comparisons": comparisons}
            output.emit({**whole, "provider": provider} if len(chosen) > 1 else whole)
        elif report.passed:
            output.say(f"{provider}: {report}" if len(chosen) > 1 else str(report))
        report.require()
