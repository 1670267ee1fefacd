"""`utcompile export`: fold, export to ONNX, prove; or write the tuners as PEFT does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from utcompile.cli import output
from utcompile.cli.folders import check_apart, check_file, check_free
from utcompile.cli.options import BatchSizes, Json, OptionalModel, RunFolder, Trust, Weights, batches_of, examples

EXAMPLES = examples(
    "utcompile export run/ -o model.onnx",
    "utcompile export run/ -o model.onnx --opset 20 --batch-sizes 1,16",
    "utcompile export run/ -o model.onnx --no-fold --json",
    "utcompile export run/ --peft -o adapter/",
)


def export(
    run: RunFolder,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The ONNX file to write; with --peft, a folder.")
    ],
    fold: Annotated[bool, typer.Option(help="Fold the tuners first.")] = True,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if a tuner cannot be folded.")] = False,
    peft: Annotated[bool, typer.Option("--peft", help="Write the LoRA or DoRA tuners for PEFT, and no ONNX.")] = False,
    opset: Annotated[int | None, typer.Option(min=1, help="Of ONNX operators; the exporter's own by default.")] = None,
    batch_sizes: BatchSizes = None,
    tolerance: Annotated[float | None, typer.Option(help="Relative to the largest output; 1e-4 by default.")] = None,
    model: OptionalModel = None,
    weights: Weights = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Fold a run and export it to ONNX; the file appears once ONNX Runtime and PyTorch agree."""
    import utcompile as utc
    from utcompile.cli.runs import open_run
    from utcompile.deploy import export_onnx

    sizes = batches_of(batch_sizes)
    check_apart(out, run)
    if peft:
        check_free(out, overwrite=False, flag="remove it")
        path = utc.save_peft(open_run(run, model, weights, trust).tuned, out)
        if json:
            output.emit({"path": str(path)})
        else:
            output.say(f"{path}: for peft.PeftModel.from_pretrained(model, …)")
        return
    check_file(out)
    opened = open_run(run, model, weights, trust)
    module, report = utc.fold(opened.tuned, strict=strict) if fold else (opened.tuned, None)
    if report is not None:
        output.progress(str(report))
    output.progress("exporting and comparing with ONNX Runtime")
    result = export_onnx(
        module,
        out,
        opened.example,
        batch_sizes=sizes,
        tolerance=tolerance,
        opset=opset,
        metadata={"utcompile.rules": opened.tuned.ruleset.name, "utcompile.base": opened.fingerprint},
    )
    if not json:
        output.say(str(result))
        return
    output.emit(
        {
            "path": str(result.path),
            "max_error": result.max_error,
            "opset": result.opset,
            "bytes": result.bytes,
            "inputs": result.input_names,
            "outputs": result.output_names,
            "batch_sizes": result.batch_sizes,
            "fold": report.to_dict() if report else None,
        }
    )
