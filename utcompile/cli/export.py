"""`utcompile export`: fold, export to ONNX, prove; several tasks in one file; or write the tuners as PEFT does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from utcompile.cli import output
from utcompile.cli.early_runs import check_new_folder, check_proof, check_run
from utcompile.cli.fold_lines import sibling_named, summary_lines
from utcompile.cli.folders import TOKENIZER, check_apart, check_free
from utcompile.cli.options import BatchSizes, Json, OptionalModel, Trust, Weights, batches_of, examples, tasks_of
from utcompile.files import check_target, reported
from utcompile.plain_data import JsonObject

if TYPE_CHECKING:
    from utcompile.deploy import ExportResult

EXAMPLES = examples(
    "utcompile export run/ -o model.onnx",
    "utcompile export run/ -o model.onnx --opset 20 --batch-sizes 1,16",
    "utcompile export run/ -o model.onnx --dtype float16-weights --no-fold --json",
    "utcompile export --task cats=run1/ --task dogs=run2/ --routing call -o pets.onnx",
    "utcompile export run/ --peft -o adapter/",
)


def export(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The ONNX file to write; with --peft, a folder.")
    ],
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="The folder that `utcompile train -o` wrote.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="NAME=RUN", help="A task of a file with several; instead of RUN."),
    ] = None,
    routing: Annotated[
        str, typer.Option(help="With --task: one task per call, or one per row of a batch (call, row).")
    ] = "call",
    fold: Annotated[bool, typer.Option(help="Fold the tuners first.")] = True,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if a tuner cannot be folded.")] = False,
    peft: Annotated[bool, typer.Option("--peft", help="Write the LoRA or DoRA tuners for PEFT, and no ONNX.")] = False,
    dtype: Annotated[
        str | None, typer.Option(metavar="TYPE", help="float16-weights (half the size), or float16 (for GPUs).")
    ] = None,
    opset: Annotated[int | None, typer.Option(min=1, help="Of ONNX operators; the exporter's own by default.")] = None,
    batch_sizes: BatchSizes = None,
    tolerance: Annotated[float | None, typer.Option(help="Relative to the largest output; 1e-4 by default.")] = None,
    model: OptionalModel = None,
    weights: Weights = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Fold a run and export it to ONNX; the file appears once ONNX Runtime and PyTorch agree."""
    tasks, sizes = tasks_of(task), batches_of(batch_sizes)
    check_proof(tolerance, dtype, routing)
    if (run is None) == (not tasks):
        raise typer.BadParameter("give a RUN, or tasks", param_hint="RUN, --task")
    folder = run or next(iter(tasks.values()))
    for one in dict.fromkeys([folder, *tasks.values()]):
        check_run(one, model, weights, trust=trust)
        check_apart(out, one)
    if peft:
        check_free(out, overwrite=False, flag="remove it")
    (check_new_folder if peft else check_target)(out)
    import utcompile as utc
    from utcompile.cli.run_facts import labels_of, outputs_of, preprocessing_of
    from utcompile.cli.runs import open_run

    if peft:
        _peft(folder, out, open_run(folder, model, weights, trust).one_graph("a checkpoint of PEFT")[0], json)
        return
    opened = open_run(folder, model, weights, trust, load=not tasks)
    shared: JsonObject = {
        "batch_sizes": sizes,
        "tolerance": tolerance,
        "opset": opset,
        "dtype": dtype,
        "preprocessing": _with_tokenizer(preprocessing_of(folder, opened), folder, out) or None,
    }
    if tasks:
        output.progress(f"exporting {len(tasks)} tasks and comparing with ONNX Runtime")
        result = utc.export_onnx(opened.tuned, out, opened.example, tasks=tasks, routing=routing, **shared)
        _copy_tokenizer(folder, out)
        _say(result, None, json)
        return
    rules = opened.whole.ruleset
    with sibling_named(rules.name):
        module, report = utc.fold(opened.tuned, strict=strict) if fold else (opened.tuned, None)
    if report is not None:
        output.progress(summary_lines(report))
    output.progress("exporting and comparing with ONNX Runtime")
    facts = {"base": opened.fingerprint, "rules": {"name": rules.name, "vars": dict(rules.vars), "text": rules.text}}
    facts["outputs"] = outputs_of(folder)
    result = utc.export_onnx(module, out, opened.example, labels=labels_of(opened), facts=facts, **shared)
    _copy_tokenizer(folder, out)
    _say(result, report.to_dict() if report else None, json)


def _with_tokenizer(preprocessing: JsonObject, run: Path, out: Path) -> JsonObject:
    """What the file says of a tokenizer: the name of the folder that is written next to it."""
    return {**preprocessing, "tokenizer": _tokenizer_of(out).name} if (run / TOKENIZER).is_dir() else preprocessing


def _copy_tokenizer(run: Path, out: Path) -> None:
    if (run / TOKENIZER).is_dir():
        with reported("the tokenizer cannot be written", _tokenizer_of(out)):
            shutil.copytree(run / TOKENIZER, _tokenizer_of(out), dirs_exist_ok=True)


def _tokenizer_of(out: Path) -> Path:
    return out.with_suffix(".tokenizer")


def _peft(run: Path, out: Path, tuned: Any, json: bool) -> None:
    import utcompile as utc

    path = utc.save_peft(tuned, out)
    if json:
        output.emit({"path": str(path)})
    else:
        output.say(f"{path}: for peft.PeftModel.from_pretrained(model, …)")


def _say(result: ExportResult, fold: JsonObject | None, json: bool) -> None:
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
            "axes": [axis.to_dict() for axis in result.axes],
            "fixed": result.fixed,
            "guards": result.guards,
            "notes": result.notes,
            "tasks": result.tasks,
            "fold": fold,
        }
    )
