"""`utcompile compare`: methods on your own data, on one budget and one split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from utcompile.cli import output
from utcompile.cli.complete import choices
from utcompile.cli.early import check_data, check_example, check_model, check_packages, check_rules, check_weights
from utcompile.cli.early_runs import check_new_folder
from utcompile.cli.options import (
    Example,
    InputColumn,
    InputShapes,
    InputSize,
    Json,
    LabelColumns,
    Model,
    NumClasses,
    TokenizerFolder,
    Weights,
    examples,
    given,
    size_of,
)
from utcompile.cli.train_checks import TASKS, WORDS, check_files, check_names

if TYPE_CHECKING:
    from utcompile.report.comparison import Comparison

EXAMPLES = examples(
    "utcompile compare -m timm:vit_small_patch16_224 -d photos/ -r probe/linear,lora/all_linear,u_tuning/dual -o cmp/",
    "utcompile compare -m demo:efficientnet_lite0 -d digits.npz -r probe/linear,bitfit/biases,full --seeds 3 -o cmp/",
    "utcompile compare -m timm:resnet18 -d data.npz -r probe/linear,lora/all_conv --lr 1e-3,3e-3,1e-2 -o cmp/",
    "utcompile compare -m hf:bert/ --task text -d reviews.csv -r probe/linear,lora/all_linear --metric f1 -o cmp/",
)
_WIDEST = 1000  # of a table, in characters
LATENCIES = ("onnx", "torch", "none")
SCHEDULES = WORDS["schedule"]


def compare(
    model: Model,
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            "-d",
            metavar="DATA",
            help="As for train: a folder, a table (.csv .tsv .jsonl), an .npz file, or file.py:function.",
        ),
    ],
    rules: Annotated[
        list[str],
        typer.Option(
            "--rules",
            "-r",
            metavar="RULES,…",
            help="Rule files or names of shipped rules; `full` is full fine-tuning. The first is the baseline.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="The folder to write; one of an unfinished comparison goes on."
        ),
    ],
    task: Annotated[
        str, typer.Option(help="classify, multilabel, regress, segment, text, custom.", autocompletion=choices(*TASKS))
    ] = "classify",
    metric: Annotated[
        str | None, typer.Option(help="The metric that is compared; by default the first one of the task.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many runs each method gets.")] = 3,
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    lr: Annotated[
        str,
        typer.Option(metavar="LR,…", help="The highest learning rate; of several, each method's best on validation."),
    ] = "1e-3",
    weight_decay: Annotated[float, typer.Option(min=0)] = 1e-4,
    schedule: Annotated[str, typer.Option(help=f"{', '.join(SCHEDULES)}.")] = "cosine",
    num_classes: NumClasses = None,
    weights: Weights = None,
    pretrained: Annotated[bool, typer.Option(help="Fetch the library's pretrained weights.")] = True,
    input_size: InputSize = None,
    input_column: InputColumn = None,
    label_column: LabelColumns = None,
    tokenizer: TokenizerFolder = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Of texts, in tokens.")] = None,
    loss: Annotated[
        str | None, typer.Option(metavar="FILE.py:NAME", help="Of a custom task: loss(output, target).")
    ] = None,
    metrics_function: Annotated[
        str | None,
        typer.Option(metavar="FILE.py:NAME", help="Of a custom task: metrics(outputs, targets) returns a dict."),
    ] = None,
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="Of the metric of a custom task.")] = False,
    example: Example = None,
    input_shapes: InputShapes = None,
    latency: Annotated[str, typer.Option(help="Of the folded models: onnx, torch or none.")] = "onnx",
    cache: Annotated[float, typer.Option(min=0, help="GB for values of the frozen backbone that methods share.")] = 4.0,
    json: Json = False,
) -> None:
    """Compare methods on your data: accuracy, parameters, memory, time, folded latency; seed by seed.

    FOLDER/comparison.html, .csv and .json have the table. Methods that do not fit the model are listed, the others go
    on. Interrupted, the same command goes on where it stopped.
    """
    check_packages()
    names = [name for text in rules for name in text.split(",") if name]
    if not names:
        raise typer.BadParameter("no rules are named", param_hint="--rules")
    rates = rates_of(lr)
    for value, known, option in (
        (latency, LATENCIES, "--latency"),
        (task, TASKS, "--task"),
        (schedule, SCHEDULES, "--schedule"),
    ):
        if value not in known:
            raise typer.BadParameter(f"{value!r} is none of {', '.join(known)}", param_hint=option)
    check_model(model)
    for name in names:
        if name != "full":
            check_rules(name)
    data = Path(absolute(str(data)))
    check_data(data, task)
    check_weights(weights)
    check_example(example, input_shapes)
    check_names("adamw", [metric] if metric else [], task)
    check_files({"loss": loss, "metrics_function": metrics_function, "tokenizer": tokenizer, "example": None})
    check_new_folder(out)
    size = size_of(input_size)

    from utcompile.cli.compare_data import compared_task
    from utcompile.cli.compare_methods import Budget, Methods
    from utcompile.cli.hf import with_head
    from utcompile.cli.models import ModelChoice
    from utcompile.cli.train_data import READING

    budget = Budget(epochs, batch_size, rates, tuple(range(seeds)), weight_decay, schedule)
    choice = ModelChoice(
        with_head(model, task),
        num_classes,
        str(weights) if weights else None,
        pretrained,
        0,
        size,
        **given(example, input_shapes),
    )
    reading = {
        **READING,
        "task": task,
        "input_column": input_column,
        "label_column": list(label_column or ()),
        "tokenizer": tokenizer,
        "max_length": max_length,
        "check": False,
        "loss": loss and absolute(loss),
        "metrics_function": metrics_function and absolute(metrics_function),
        "lower_is_better": lower_is_better,
    }
    with compared_task(choice, data, reading, (metric,) if metric else ()) as compared:
        output.progress(str(compared.data))
        methods = Methods(out, compared, budget, latency=latency, cache=1e9 * cache, say=output.progress)
        found = methods.run(names)
    if json:
        output.emit(found.to_dict())
        return
    _show(found, out)
    best = methods.best_run(found)
    output.say(f"next: utcompile report {best}, utcompile export {best} -o model.onnx", "dim")
    output.say(f"(the best run on the validation data; the others are in {out / 'runs'})", "dim")


def absolute(text: str) -> str:
    """`file.py:function` with the file's whole path; other paths as they are."""
    file, colon, name = text.rpartition(":")
    return f"{Path(file).resolve()}:{name}" if colon and file.endswith(".py") else text


def _show(found: Comparison, out: Path) -> None:
    from rich.measure import Measurement
    from rich.table import Table

    from utcompile.report.comparison import cells, heads, notes_of

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, head in enumerate(heads(found.metric)):
        table.add_column(head, justify="right" if index else "left", no_wrap=True)
    for row in found.rows():
        table.add_row(*cells(row, found.metric))
    console = output.stdout()
    # A narrow terminal wraps lines; it never cuts a figure.
    wide = Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum
    console.width = max(wide, console.width)
    console.print(table, crop=False)
    for note in notes_of(found):
        output.say(note, "dim")
    for name, why in found.left_out.items():
        output.say(f"left out: {name}: {why}")
    output.say(f"written: {out / 'comparison.html'}")


def rates_of(text: str) -> tuple[float, ...]:
    """`1e-3,5e-3` as numbers."""
    try:
        found = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        found = ()
    if not found or not all(0 < rate < float("inf") for rate in found):
        raise typer.BadParameter(f"{text!r} is no list of learning rates; give e.g. 1e-3,5e-3", param_hint="--lr")
    return found
