"""What `utcompile train`, `evaluate` and `report` make of a data path: the data, the tokenizer, the task, examples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utcompile.cli import output
from utcompile.cli.early_runs import CODE
from utcompile.cli.train_texts import check_vocabulary
from utcompile.cli.watch import log_lines
from utcompile.errors import UtcError
from utcompile.plain_data import JsonObject

if TYPE_CHECKING:
    from utcompile.cli.models import ModelChoice
    from utcompile.train import Data
    from utcompile.train.tasks import Task

# Options that say how data are read and what is measured; the others are arguments of `fit`.
Reading = Mapping[str, Any]  # how data are read: the options that a run keeps for that
READING: Reading = {
    "task": "classify",
    "input_column": None,
    "label_column": [],
    "tokenizer": None,
    "max_length": None,
    "check": True,
    "skip_bad": False,
    "loss": None,
    "metrics_function": None,
    "lower_is_better": False,
    "tensorboard": False,
}
_LENGTH = 128  # tokens of a text, by default


def read_data(
    choice: ModelChoice,
    path: Path,
    reading: Reading,
    seed: int,
    augment: bool | str | None,
    run: Path | None = None,
    *,
    measured: bool = False,
) -> tuple[Data, Any]:
    """The data, and the tokenizer of a text task.

    Args:
        measured: as for `load_data`.
        run: a run's folder, whose tokenizer is taken.
    """
    from dataclasses import asdict

    from utcompile.cli.user_code import called, function_of
    from utcompile.train import load_data
    from utcompile.train.own_data import data_of

    if is_function(path):
        return data_of(
            called(function_of(str(path), "data"), str(path), "data function"), reading["task"], str(path)
        ), None
    tokenizer = _tokenizer(choice, reading, run) if reading["task"] == "text" else None
    augment = augmented(augment, reading, path)
    if reading["check"] and reading["task"] != "text" and path.suffix != ".npz":
        output.progress("checking that every image can be read (--no-check leaves this out)")
    with log_lines("utcompile.train.damaged"):
        data = load_data(
            path,
            **asdict(choice.preset()),
            seed=seed,
            augment=augment,
            task=reading["task"],
            input_column=reading["input_column"],
            label_columns=tuple(reading["label_column"] or ()),
            tokenizer=tokenizer,
            max_length=reading["max_length"] or _usual_length(choice),
            check=bool(reading["check"]),
            skip_bad=bool(reading["skip_bad"]),
            measured=measured,
        )
    return data, tokenizer


def augmented(augment: bool | str | None, reading: Reading, path: Path) -> bool | str:
    """Whether images are changed at random; by default those of files, because flips and crops suit photographs."""
    if augment is not None:
        return augment
    return reading["task"] not in ("text", "custom") and path.suffix != ".npz" and not is_function(path)


def _usual_length(choice: ModelChoice) -> int:
    from utcompile.cli.hf import HuggingFace

    source = choice.source
    limit = source.config.get("max_position_embeddings") if isinstance(source, HuggingFace) else None
    return min(_LENGTH, limit) if isinstance(limit, int) and limit > 0 else _LENGTH


def _tokenizer(choice: ModelChoice, reading: Reading, run: Path | None) -> Any:
    from utcompile.cli.hf import HuggingFace
    from utcompile.train.task_file import TOKENIZER
    from utcompile.train.texts import read_tokenizer

    folder = reading["tokenizer"]
    if run is not None and (run / TOKENIZER).is_dir():
        folder = run / TOKENIZER
    if folder is None and isinstance(choice.source, HuggingFace):
        folder = choice.source.folder
    if folder is None:
        raise UtcError(
            "texts need a tokenizer", fix="give the local folder of one: --tokenizer DIR", code="data/tokenizer"
        )
    found = read_tokenizer(folder)
    if reading["tokenizer"] is not None and isinstance(choice.source, HuggingFace) and run is None:
        check_vocabulary(found, choice.source.folder)
    return found


def example_of_data(choice: ModelChoice, data: Data) -> Any:
    """Example inputs of the model for a task: the user's, images, or two samples of the data."""
    from torch.utils.data import default_collate

    if choice.example_from is not None or choice.sizes:
        return choice.inputs()
    if data.task == "text":
        tokens: Any = data.train.tokens  # type: ignore[attr-defined]
        length = min(32, tokens.max_length)
        found = tokens.tokenizer(
            ["a", "b"], padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return {name: found[name] for name in tokens.inputs}
    if data.task == "custom":
        batch: Any = (data.collate or default_collate)([data.train[i % data.samples] for i in (0, 1)])
        inputs = batch[0]
        return inputs if isinstance(inputs, Mapping) else tuple(inputs) if isinstance(inputs, list) else (inputs,)
    return (choice.example(),)


def task_of(data: Data, reading: Reading, settings: JsonObject) -> Task:
    """The loss and the metrics of a run."""
    from utcompile.cli.user_code import function_of
    from utcompile.train import make_task

    loss, measure = (reading[key] and function_of(reading[key], key.replace("_", " ")) for key in CODE)
    return make_task(
        data,
        metrics=settings.get("metrics") or (),
        label_smoothing=settings.get("label_smoothing", 0.0),
        class_weights=settings.get("class_weights", "none"),
        loss=loss,
        measure=measure,
        higher=not reading["lower_is_better"],
    )


def is_function(path: Path) -> bool:
    """Whether data comes from `file.py:function`."""
    return ".py:" in str(path)
