"""`utcompile evaluate`: what a run is worth on data: per class, confusion, calibration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from utcompile.cli import output
from utcompile.cli.drawings import check_targets
from utcompile.cli.early import check_data
from utcompile.cli.early_runs import check_functions, check_run
from utcompile.cli.folders import MANIFEST
from utcompile.cli.options import Json, OptionalModel, RunFolder, Trust, Weights, examples
from utcompile.errors import UtcError
from utcompile.plain_data import JsonObject

if TYPE_CHECKING:
    from rich.table import Table

    from utcompile.train import Data
    from utcompile.train.evaluation import Evaluation
    from utcompile.train.tasks import Task

EXAMPLES = examples(
    "utcompile evaluate run/",
    "utcompile evaluate run/ -d test-photos/",
    "utcompile evaluate run/ -d test.csv --json -o test.json",
)
_MOST_CLASSES = 20  # of a confusion matrix in a terminal


def evaluate(
    run: RunFolder,
    data: Annotated[
        Path | None,
        typer.Option("--data", "-d", metavar="DATA", help="As for train; the run's own validation data by default."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write the figures as JSON, too.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read the data.")] = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out samples that cannot be used.")] = False,
    model: OptionalModel = None,
    weights: Weights = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Measure a run on data: figures per class, the confusion matrix, and how far its probabilities are right.

    Of data with a split, the validation part is measured (val, then test); of other data, every sample. Classes are
    matched by name.
    """
    check_run(run, model, weights, trust=trust)
    check_functions(run, "evaluating", trust=trust)
    if data is not None:
        check_data(data, "")
    check_targets(out)
    found, read = evaluate_run(run, data, batch_size, workers, skip_bad, model, weights, trust)
    report = {"run": str(run), "data": read, **found.as_dict()}
    if out is not None:
        from utcompile.files import replace_file, reported

        with reported("the figures cannot be written", out):
            replace_file(out.absolute(), output.as_json(report).encode())
    if json:
        output.emit(report)
        return
    show(found)


def evaluate_run(
    run: Path,
    data_path: Path | None,
    batch_size: int,
    workers: int,
    skip_bad: bool,
    model: str | None,
    weights: Path | None,
    trust: bool,
) -> tuple[Evaluation, str]:
    """Measure a run; returns the figures, and what was read."""
    from torch.utils.data import DataLoader

    from utcompile.cli.runs import open_run
    from utcompile.cli.train_data import READING, read_data, task_of
    from utcompile.cli.train_texts import fitted
    from utcompile.rewrite import read_manifest
    from utcompile.train.evaluation import evaluate_model
    from utcompile.train.held_out import check_held_out, seed_of_split
    from utcompile.train.renumbered import Renumbered, with_classes

    manifest = read_manifest(run)
    training = manifest.get("training")
    if not isinstance(training, dict) or not isinstance(manifest.get("data"), str):
        raise UtcError(
            "the manifest does not say how the run was trained", where=str(run / MANIFEST), code="checkpoint/damaged"
        )
    reading = {key: training.get(key, default) for key, default in READING.items()}
    reading["skip_bad"] = reading["skip_bad"] or skip_bad
    opened = open_run(run, model, weights, trust)
    path = data_path or Path(manifest["data"])
    augment = False if reading["task"] != "custom" else None
    seed = seed_of_split(manifest)
    data, tokenizer = read_data(opened.choice, path, reading, seed, augment, run, measured=data_path is not None)
    if data_path is None:
        check_held_out(data, manifest, str(path))
    if tokenizer is not None:
        data = fitted(data, opened.tuned, tokenizer, opened.choice.spec)
    classes = tuple(str(name) for name in manifest.get("classes") or data.class_names)
    chosen = Renumbered(data.validation, data, classes)
    said = f"{len(chosen)} samples of {path}{_part(data, path, data_path is not None, manifest)}"
    output.progress(said)
    task = run_task(run, task_of(with_classes(data, classes), reading, {**training, "class_weights": "none"}))
    batches = DataLoader(chosen, batch_size, num_workers=workers, collate_fn=data.collate)
    return evaluate_model(opened.tuned, batches, task, classes), said


def _part(data: Data, path: Path, is_named: bool, manifest: JsonObject) -> str:
    """Which part of the data is measured, in words."""
    from utcompile.train.held_out import KEY

    if not data.drawn:
        return ", its validation part"
    if not is_named:
        return ", which the run held out" if KEY in manifest else ", held out anew: the run does not say which it was"
    is_same = path.resolve() == Path(manifest["data"])
    return ", on most of which the run was trained (without -d, the others are measured)" if is_same else ""


def run_task(run: Path, task: Task) -> Task:
    """The task with the standard of the run's targets, which other data does not have."""
    from dataclasses import replace

    import torch

    from utcompile.train.task_file import read_task_file
    from utcompile.train.tasks import Regress

    if not isinstance(task, Regress):
        return task
    outputs = read_task_file(run).outputs
    mean, std = torch.tensor(outputs["mean"]), torch.tensor(outputs["std"])
    return replace(task, mean=mean, std=std)


def show(found: Evaluation) -> None:
    """Print the figures."""
    from utcompile.train.result import SHARES

    console = output.stdout()
    figures = ", ".join(
        f"{name.replace('_', ' ')} {f'{value:.2%}' if name in SHARES else f'{value:.4g}'}"
        for name, value in found.figures.items()
    )
    output.say_wrapped(f"{found.samples} samples: {figures}", "bold")
    if found.classes:
        console.print()
        console.print(_classes(found))
    if found.confusion is not None and len(found.confusion) <= _MOST_CLASSES:
        output.say("\ntrue class (rows) and predicted class (columns)")
        console.print(_confusion(found))
    if found.calibration:
        output.say("\nconfidence and how often it was right")
        console.print(_calibration(found))


def _classes(found: Evaluation) -> Table:
    from rich.table import Table

    word = {"regress": "target", "multilabel": "label"}.get(found.task, "class")
    unit = "pixels" if found.task == "segment" else "samples"
    columns = list(dict.fromkeys(name for c in found.classes for name in c.figures))
    table = Table(word, box=None, pad_edge=False, header_style="bold")
    for name in (*columns, unit):
        table.add_column(name, justify="right")
    for c in found.classes:
        shown = ".4g" if found.task == "regress" else ".3f"
        cells = [f"{c.figures[n]:{shown}}" if n in c.figures else "-" for n in columns]
        table.add_row(c.name, *cells, f"{c.support:,}")
    return table


def _confusion(found: Evaluation) -> Table:
    from rich.table import Table
    from rich.text import Text

    names = [c.name for c in found.classes]
    table = Table("", box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name[:12], justify="right")
    for i, row in enumerate(found.confusion or []):
        cells = [
            Text(f"{n:,}" if n else "·", "bold green" if i == j else "red" if n else "dim") for j, n in enumerate(row)
        ]
        table.add_row(names[i][:20], *cells)
    return table


def _calibration(found: Evaluation) -> Table:
    from rich.table import Table

    table = Table("confidence", box=None, pad_edge=False, header_style="bold")
    for name in ("mean", "right", "count"):
        table.add_column(name, justify="right")
    for b in found.calibration:
        span = f"{b['from']:.2f} to {b['to']:.2f}"
        table.add_row(span, f"{b['confidence']:.3f}", f"{b['accuracy']:.3f}", f"{int(b['count']):,}")
    return table
