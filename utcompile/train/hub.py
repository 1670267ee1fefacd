"""Data sets that the package `datasets` saved to disk (`save_to_disk`), as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from utcompile.errors import UtcError
from utcompile.train.pictures import reason_of
from utcompile.train.tables import HELD_OUT, Table

_MARKS = ("dataset_dict.json", "state.json")


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((path / name).is_file() for name in _MARKS)


def read_hub(path: Path, *, measured: bool = False) -> tuple[Table, Table | None]:
    """The training rows and the held-out rows, where the folder has splits.

    Images are not read: a cell of theirs is a function that opens one. Class labels are names.

    Raises:
        UtcError: the package is not installed, or the folder cannot be read or has no split `train`.
    """
    try:
        import datasets
    except ImportError as error:
        raise UtcError(
            "this folder was saved by the package datasets, which is not installed",
            where=str(path),
            why=str(error),
            fix="pip install 'utcompile[hf]'",
            code="train/needs",
        ) from error
    try:
        found: Any = datasets.load_from_disk(str(path))
    except Exception as error:  # pyarrow and datasets raise dozens of classes
        raise UtcError(
            "the saved data set cannot be read", where=str(path), why=reason_of(error), code="data/damaged"
        ) from error
    if not isinstance(found, Mapping):
        return _table(path, found), None
    held = next((name for name in HELD_OUT if name in found), None)
    if measured and held is not None and "train" not in found:
        return _table(path / held, found[held]), None
    if "train" not in found:
        raise UtcError(
            "the data set has no split 'train'",
            where=str(path),
            why=f"it has {', '.join(found)}",
            code="data/not-found",
        )
    return _table(path / "train", found["train"]), None if held is None else _table(path / held, found[held])


def _table(path: Path, rows: Any) -> Table:
    images = [name for name, feature in rows.features.items() if type(feature).__name__ == "Image"]
    plain = rows.remove_columns(images) if images else rows
    names = {name: f.names for name, f in rows.features.items() if type(f).__name__ == "ClassLabel"}
    made: list[Mapping[str, object]] = []
    for index, row in enumerate(plain):
        labels = {n: known[row[n]] if row[n] is not None and row[n] >= 0 else None for n, known in names.items()}
        opened = {name: partial(_picture, rows, index, name) for name in images}
        made.append({**row, **labels, **opened})
    if images and not plain.column_names:
        made = [{name: partial(_picture, rows, i, name) for name in images} for i in range(len(rows))]
    places = tuple(f"{path}, row {i}" for i in range(len(made)))
    if not made:
        raise UtcError("the data set contains no rows", where=str(path), code="data/not-found")
    return Table(path, tuple(rows.column_names), tuple(made), places)


def _picture(rows: Any, index: int, name: str) -> Image.Image:
    picture: Image.Image = rows[index][name]
    return picture


Opener = Callable[[], Image.Image]
