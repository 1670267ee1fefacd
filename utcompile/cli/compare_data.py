"""The data of a comparison: one split of any task, and the test part of data that have a validation part too."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utcompile.cli.train_data import Reading
from utcompile.errors import UtcError
from utcompile.plain_data import Keywords

if TYPE_CHECKING:
    from utcompile.cli.compare_methods import Task
    from utcompile.cli.models import ModelChoice
    from utcompile.train import Data
    from utcompile.train.tables import Table

_HELD = ("val", "validation", "valid", "dev")
_SEED = 0  # of the split


@contextmanager
def compared_task(choice: ModelChoice, path: Path, reading: Reading, metrics: tuple[str, ...]) -> Iterator[Task]:
    """A model and its data, as methods are compared on them; files that are made for the test part last as long.

    Args:
        reading: how the data are read, as `utcompile train` takes it.
        metrics: of the task; the first one is compared.

    Raises:
        UtcError: the data cannot be read, or do not fit the model.
    """
    from utcompile.cli.compare_methods import Task
    from utcompile.cli.train_data import example_of_data, is_function, read_data, task_of
    from utcompile.cli.train_texts import fitted
    from utcompile.train.held_out import held_out
    from utcompile.train.task_file import TOKENIZER

    data, tokenizer = read_data(choice, path, reading, _SEED, False)
    if choice.num_classes is None and data.num_classes and choice.source.takes_num_classes():
        choice = replace(choice, num_classes=data.num_classes)
    goal = task_of(data, reading, {"metrics": metrics})
    with _tested(choice, path, reading, data, tokenizer) as tested:
        if tokenizer is not None:
            model = choice.build()
            data = fitted(data, model, tokenizer, choice.spec)
            tested = None if tested is None else fitted(tested, model, tokenizer, choice.spec)
        recorded = str(path) if is_function(path) else str(path.resolve())
        about = {"model": choice.as_dict(), "data": recorded}

        def extra(seed: int) -> dict[str, object]:
            return {**about, "classes": list(data.class_names), **held_out(data, _SEED)}

        def prepare(run: Path) -> None:
            if tokenizer is not None:
                tokenizer.save_pretrained(str(run / TOKENIZER))

        yield Task(
            lambda seed: replace(choice, seed=seed).build(),
            example_of_data(choice, data),
            data,
            None if tested is None else tested.validation,
            {**about, **_differing(reading), "metric": goal.metrics[0]},
            extra,
            goal=goal,
            reading=reading,
            prepare=prepare,
        )


def _differing(reading: Reading) -> dict[str, object]:
    """What of how the data are read is not as usual: settings of the comparison, too."""
    from utcompile.cli.train_data import READING

    return {key: value for key, value in reading.items() if key in READING and value != READING[key]}


@contextmanager
def _tested(choice: ModelChoice, path: Path, reading: Reading, data: Data, tokenizer: Any) -> Iterator[Data | None]:
    """Data whose validation part is the test part; None where there are not both."""
    from utcompile.cli.train_data import is_function, read_data
    from utcompile.train.tables import SUFFIXES

    if is_function(path):
        yield None
        return
    tables = _test_tables(path)
    if tables is not None:
        yield _of_tables(choice, tables, reading, data, tokenizer)
        return
    with tempfile.TemporaryDirectory() as folder:
        made = None
        if path.suffix == ".npz" and path.is_file():
            made = _test_arrays(path, Path(folder))
        elif path.is_dir() and not any((path / f"train{suffix}").is_file() for suffix in SUFFIXES):
            made = _test_folder(path, Path(folder))
        yield None if made is None else read_data(choice, made, reading, _SEED, False)[0]


def _test_arrays(path: Path, folder: Path) -> Path | None:
    import numpy as np

    with np.load(path, allow_pickle=False) as file:
        if not {"x_val", "x_test", "y_test", "x_train", "y_train"} <= set(file.files):
            return None
        parts = {name: file[name] for name in file.files if not name.endswith("_val")}
    np.savez(folder / "test.npz", **parts)
    return folder / "test.npz"


def _test_folder(path: Path, folder: Path) -> Path | None:
    """A folder of links to the entries of another, whose `val` is the other's `test`."""
    if not (any((path / name).is_dir() for name in _HELD) and (path / "train").is_dir() and (path / "test").is_dir()):
        return None
    try:
        for entry in path.iterdir():
            if entry.name not in (*_HELD, "test"):
                (folder / entry.name).symlink_to(entry.resolve(), target_is_directory=entry.is_dir())
        (folder / "val").symlink_to((path / "test").resolve(), target_is_directory=True)
    except OSError as error:
        raise UtcError(
            "the test data cannot be read next to the validation data",
            where=str(path / "test"),
            why=str(error),
            fix="compare on the validation data: move the folder `test` away",
            code="data/not-found",
        ) from error
    return folder


def _test_tables(path: Path) -> tuple[Table, Table] | None:
    """The training rows and the test rows of tables that have rows for validation as well."""
    from utcompile.train.tables import SPLITS, SUFFIXES, read_table

    def named(name: str) -> Path | None:
        return next((path / f"{name}{suffix}" for suffix in SUFFIXES if (path / f"{name}{suffix}").is_file()), None)

    if path.is_dir():
        train, test = named("train"), named("test")
        if train is None or test is None or not any(map(named, _HELD)):
            return None
        return read_table(train), read_table(test)
    if path.suffix not in SUFFIXES:
        return None
    table = read_table(path)
    column = table.like("split")
    words = [str(row.get(column or "")).strip().lower() for row in table.rows]
    parts = [SPLITS.get(word, word) for word in words]
    if column is None or not {"train", "val", "test"} <= set(parts):
        return None

    def part(name: str) -> Table:
        rows = [i for i, found in enumerate(parts) if found == name]
        return replace(table, rows=tuple(table.rows[i] for i in rows), places=tuple(table.places[i] for i in rows))

    return part("train"), part("test")


def _of_tables(choice: ModelChoice, tables: tuple[Table, Table], reading: Reading, data: Data, tokenizer: Any) -> Data:
    from utcompile.train.dataset import Preprocessing
    from utcompile.train.image_table import load_image_table
    from utcompile.train.mask_files import load_mask_table
    from utcompile.train.texts import load_texts

    options: Keywords = {
        "seed": _SEED,
        "input_column": reading["input_column"],
        "label_columns": tuple(reading["label_column"] or ()),
        "skip_bad": bool(reading["skip_bad"]),
    }
    if tokenizer is not None:
        return load_texts(tables, tokenizer=tokenizer, max_length=int(str(data.preprocessing["max_length"])), **options)
    preset = choice.preset()
    channels = preset.input_size[0]
    how = Preprocessing(**{**asdict(preset), "mean": preset.mean[:channels], "std": preset.std[:channels]})
    if reading["task"] == "segment":
        return load_mask_table(tables, how, augment=False, **options)
    checked = bool(reading["check"])
    return load_image_table(tables, how, task=reading["task"], augment=False, check=checked, **options)
