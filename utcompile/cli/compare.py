"""`utcompile compare`: methods on your own data, on one budget and one split."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from utcompile.cli import output
from utcompile.cli.options import InputSize, Json, Model, NumClasses, Weights, examples, size_of
from utcompile.errors import UtcError

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from utcompile.report.comparison import Comparison

EXAMPLES = examples(
    "utcompile compare -m timm:vit_small_patch16_224 -d photos/ -r probe/linear,lora/all_linear,u_tuning/dual -o cmp/",
    "utcompile compare -m demo:efficientnet_lite0 -d digits.npz -r probe/linear,bitfit/biases,full --seeds 3 -o cmp/",
    "utcompile compare -m timm:resnet18 -d data.npz -r probe/linear,lora/all_conv --lr 1e-3,3e-3,1e-2 -o cmp/",
)
LATENCIES = ("onnx", "torch", "none")


def compare(
    model: Model,
    data: Annotated[
        Path, typer.Option("--data", "-d", metavar="DATA", help="A folder of class folders, or an .npz file.")
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
    seeds: Annotated[int, typer.Option(min=1, help="How many runs each method gets.")] = 3,
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    lr: Annotated[
        str,
        typer.Option(metavar="LR,…", help="The highest learning rate; of several, each method's best on validation."),
    ] = "1e-3",
    weight_decay: Annotated[float, typer.Option(min=0)] = 1e-4,
    schedule: Annotated[str, typer.Option(help="cosine or onecycle.")] = "cosine",
    num_classes: NumClasses = None,
    weights: Weights = None,
    pretrained: Annotated[bool, typer.Option(help="Fetch the library's pretrained weights.")] = True,
    input_size: InputSize = None,
    latency: Annotated[str, typer.Option(help="Of the folded models: onnx, torch or none.")] = "onnx",
    cache: Annotated[float, typer.Option(min=0, help="GB for values of the frozen backbone that methods share.")] = 4.0,
    json: Json = False,
) -> None:
    """Compare methods on your data: accuracy, parameters, memory, time, folded latency; seed by seed.

    FOLDER/comparison.html, .csv and .json have the table. Methods that do not fit the model are listed, the others go
    on. Interrupted, the same command goes on where it stopped.
    """
    from utcompile.cli.compare_methods import Budget, Methods, Task
    from utcompile.cli.models import ModelChoice
    from utcompile.train import load_data
    from utcompile.train.needs import check_accelerate

    check_accelerate()
    if latency not in LATENCIES:
        raise typer.BadParameter(f"{latency!r} is none of {', '.join(LATENCIES)}", param_hint="--latency")
    budget = Budget(epochs, batch_size, rates_of(lr), tuple(range(seeds)), weight_decay, schedule)
    names = [name for text in rules for name in text.split(",") if name]
    if not names:
        raise typer.BadParameter("no rules are named", param_hint="--rules")
    choice = ModelChoice(model, num_classes, str(weights) if weights else None, pretrained, 0, size_of(input_size))
    how: dict[str, Any] = asdict(choice.preset())
    loaded = load_data(data, **how, seed=0)
    with _test_data(data, how) as test:
        if choice.num_classes is None and not choice.source.runs_code:
            choice = replace(choice, num_classes=loaded.num_classes)
        output.progress(str(loaded))

        def extra(seed: int) -> dict[str, object]:
            return {"model": choice.as_dict(), "data": str(data.resolve()), "classes": list(loaded.class_names)}

        task = Task(
            lambda seed: replace(choice, seed=seed).build(),
            (choice.example(),),
            loaded,
            test,
            {"model": choice.as_dict(), "data": str(data.resolve())},
            extra,
        )
        methods = Methods(out, task, budget, latency=latency, cache=1e9 * cache, say=output.progress)
        found = methods.run(names)
    if json:
        output.emit(found.to_dict())
        return
    _show(found, out)


def _show(found: Comparison, out: Path) -> None:
    from rich.table import Table

    from utcompile.report.comparison import HEADS, cells, notes_of

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, head in enumerate(HEADS):
        table.add_column(head, justify="right" if index else "left", no_wrap=True)
    for row in found.rows():
        table.add_row(*cells(row))
    output.stdout().print(table)
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


@contextmanager
def _test_data(path: Path, how: dict[str, Any]) -> Iterator[Dataset[object] | None]:
    """The test part of data that have a validation part too; read as validation data are, with all checks."""
    import numpy as np

    from utcompile.train import load_data

    with tempfile.TemporaryDirectory() as folder:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                names = set(file.files)
                if not {"x_val", "x_test", "y_test", "x_train", "y_train"} <= names:
                    yield None
                    return
                parts = {k: file[k] for k in ("x_train", "y_train", "x_test", "y_test")}
            made = Path(folder) / "test.npz"
            np.savez(made, **parts)
            yield load_data(made, **how, seed=0).validation
            return
        held = [path / name for name in ("val", "validation") if (path / name).is_dir()]
        if not (held and (path / "train").is_dir() and (path / "test").is_dir()):
            yield None
            return
        try:
            for name, source in (("train", path / "train"), ("val", path / "test")):
                (Path(folder) / name).symlink_to(source.resolve(), target_is_directory=True)
        except OSError as error:
            raise UtcError(
                "the test data cannot be read next to the validation data",
                where=str(path / "test"),
                why=str(error),
                fix="compare on the validation data: move the folder `test` away",
                code="data/not-found",
            ) from error
        yield load_data(Path(folder), **how, seed=0).validation
