"""Images that a table names, with their labels or numbers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from utcompile.train.damaged import Bad, refuse, unreadable
from utcompile.train.dataset import Data, Preprocessing
from utcompile.train.folders import ImageFiles, transforms
from utcompile.train.pictures import Source
from utcompile.train.tables import Table
from utcompile.train.targets import check_cells, columns_of, make_targets

PATH = ("image", "path", "file", "filename", "image_path", "file_name", "img")


def load_image_table(
    tables: tuple[Table, Table | None],
    how: Preprocessing,
    *,
    task: str,
    seed: int,
    augment: bool | str,
    input_column: str | None,
    label_columns: Sequence[str],
    check: bool,
    skip_bad: bool,
    measured: bool = False,
) -> Data:
    """Make data of tables of images: of paths, relative to the table's folder, or of functions that open an image.

    Raises:
        UtcError: a column is missing, files are missing or damaged, or labels do not fit.
    """
    train, held = tables
    column = train.column(input_column, PATH, "input")
    labels = columns_of(train, task, label_columns, (column,))
    keep = _usable(train, column, labels, task, check, skip_bad)
    keep_held = [] if held is None else _usable(held, column, labels, task, check, skip_bad)
    found = make_targets(task, train, held, labels, keep, keep_held, seed, measured=measured)
    plain, random = transforms(how, augment)
    mode = "RGB" if how.input_size[0] == 3 else "L"
    trained = [(_path(train, i, column), t) for i, t in zip(found.rows, found.train, strict=True)]
    others = [(_path(held or train, i, column), t) for i, t in zip(found.held_rows, found.held, strict=True)]
    return Data(
        ImageFiles(trained, random, mode),
        ImageFiles(others, plain, mode),
        len(found.names),
        found.names,
        task,
        counts=found.counts,
        standard=found.standard,
        drawn=held is None,
        preprocessing=how.as_dict("crop"),
    )


def _path(table: Table, index: int, column: str) -> Source:
    cell = table.rows[index][column]
    return partial(cell) if callable(cell) else table.path.parent / str(cell)


def _usable(table: Table, column: str, labels: Sequence[str], task: str, check: bool, skip_bad: bool) -> list[int]:
    """The rows that can be trained on.

    Raises:
        UtcError: some cannot, and they are not to be skipped.
    """
    bad = {sample.index: sample for sample in check_cells(table, labels, task)}
    sources = {i: _path(table, i, column) for i in range(len(table.rows)) if i not in bad}
    bad |= {i: Bad(i, table.places[i], why) for i, source in sources.items() if (why := missing(source))}
    if check:
        left = [i for i in sources if i not in bad]
        for sample in unreadable([sources[i] for i in left]):
            index = left[sample.index]
            where = sample.where if isinstance(sources[index], Path) else table.places[index]
            bad[index] = Bad(index, where, sample.why)
    refuse([bad[i] for i in sorted(bad)], len(table.rows), skip=skip_bad)
    return [i for i in range(len(table.rows)) if i not in bad]


def missing(source: Source) -> str | None:
    """Why a source is no file, where it should be one."""
    try:
        is_there = not isinstance(source, Path) or source.is_file()
    except (OSError, ValueError):  # too long for a name, or with a null
        is_there = False
    return None if is_there else f"there is no file {source!s:.200}"
