"""Rows of a CSV, TSV or JSON Lines file, with the place of each, and their labels."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utcompile.errors import UtcError, did_you_mean

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
SPLITS: Mapping[str, str] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
_MARKS = {";": "semicolons", "\t": "tabs", "|": "bars"}  # in a header that is one column
HELD_OUT = ("val", "validation", "valid", "dev", "test")


@dataclass(frozen=True)
class Table:
    """Rows by column name; `places` has the file and line of each."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, object], ...]
    places: tuple[str, ...]

    def column(self, given: str | None, usual: Sequence[str], what: str) -> str:
        """The name of a column: the given one, or the first of the usual names that there is.

        Raises:
            UtcError: there is none.
        """
        if given is not None:
            if given not in self.columns:
                raise self._no_column(f"there is no column {given!r}", did_you_mean(given, self.columns))
            return given
        found = next((found for name in usual if (found := self.like(name)) is not None), None)
        if found is None:
            fix = f"name the column of the {what} with --{what}-column, or call it {usual[0]!r}"
            if len(self.columns) == 1 and (marks := [mark for mark in _MARKS if mark in self.columns[0]]):
                fix = f"separate the columns by commas instead of {_MARKS[marks[0]]}, or by tabs in a .tsv file"
            raise self._no_column(f"no column has the {what}", fix)
        return found

    def like(self, name: str) -> str | None:
        """The column of this name in any case; None where there is none.

        Raises:
            UtcError: there are several.
        """
        alike = [column for column in self.columns if column.lower() == name]
        if len(alike) > 1:
            raise self._no_column(f"the columns {alike[0]!r} and {alike[1]!r} differ in case alone", "rename one")
        return alike[0] if alike else None

    def _no_column(self, what: str, fix: str) -> UtcError:
        why = f"its columns are {', '.join(self.columns)}"
        return UtcError(what, where=str(self.path), why=why, fix=fix, code="data/shape")


def read_table(path: Path) -> Table:
    """Read a file of rows.

    Raises:
        UtcError: it cannot be read, is no UTF-8, has no rows, or a row does not fit the header.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UtcError(
            "the file is not UTF-8", where=str(path), why=str(error), fix="save it as UTF-8", code="data/damaged"
        ) from error
    except OSError as error:
        raise UtcError(
            "the file cannot be read", where=str(path), why=error.strerror or str(error), code="data/damaged"
        ) from error
    table = _json_lines(path, text) if path.suffix in (".jsonl", ".ndjson") else _csv(path, text)
    if not table.rows:
        raise UtcError("the file contains no rows", where=str(path), code="data/not-found")
    return table


def _csv(path: Path, text: str) -> Table:
    # Lines end where CSV says so: not at the form feeds and separators of Unicode that `splitlines` takes for ends.
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    rows: list[Mapping[str, object]] = []
    places: list[str] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        if len(set(header)) < len(header):
            twice = next(name for name, count in Counter(header).items() if count > 1)
            raise UtcError(f"the header has {twice!r} twice", where=f"{path}:1", code="data/shape")
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise UtcError(
                    f"the row has {len(row)} fields, the header {len(header)}",
                    where=f"{path}:{reader.line_num}",
                    fix='write a text that contains a comma or a line break in quotes: "a, b"',
                    code="data/damaged",
                )
            rows.append(dict(zip(header, row, strict=True)))
            places.append(f"{path}:{reader.line_num}")
    except csv.Error as error:
        raise UtcError(
            "the row cannot be read",
            where=f"{path}:{reader.line_num}",
            why=str(error),
            fix='close every quote, and write a quote inside of quotes twice: "she said ""no"""; a text of more than '
            f"{csv.field_size_limit():,} characters needs a .jsonl file",
            code="data/damaged",
        ) from error
    return Table(path, tuple(header), tuple(rows), tuple(places))


def _json_lines(path: Path, text: str) -> Table:
    rows: list[Mapping[str, object]] = []
    places: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row: object = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UtcError(
                "the line is no JSON", where=f"{path}:{number}", why=str(error), code="data/damaged"
            ) from error
        if not isinstance(row, dict):
            raise UtcError(
                f"the line is a {type(row).__name__}",
                where=f"{path}:{number}",
                fix='write one object per line: {"text": "…", "label": "…"}',
                code="data/damaged",
            )
        rows.append(row)
        places.append(f"{path}:{number}")
    return Table(path, tuple(dict.fromkeys(name for row in rows for name in row)), tuple(rows), tuple(places))


def tables_in(path: Path, *, measured: bool = False) -> tuple[Table, Table | None]:
    """The training rows of a file or folder, and the rows that are held out, where there are any.

    A folder has `train.csv` (or another suffix) with `val.csv`, `validation.csv` or `test.csv` next to it. A file may
    have a column `split` with `train` and `val`; rows with `test` are held out where there is no `val`.

    Args:
        measured: the rows are measured and not trained on, so a column `split` need not have `train`.
    """
    if path.is_dir():
        train = next((path / f"train{s}" for s in SUFFIXES if (path / f"train{s}").is_file()), None)
        if train is None:
            raise UtcError(
                "the folder contains no table of training samples",
                where=str(path),
                fix=f"name it train{SUFFIXES[0]}",
                code="data/not-found",
            )
        held = next((path / f"{h}{s}" for h in HELD_OUT for s in SUFFIXES if (path / f"{h}{s}").is_file()), None)
        return read_table(train), None if held is None else read_table(held)
    table = read_table(path)
    column = table.like("split")
    if column is None:
        return table, None
    parts = [_split_of(row.get(column), place) for row, place in zip(table.rows, table.places, strict=True)]
    held_name = "val" if "val" in parts else "test"
    if measured and "train" not in parts:
        return _part(table, parts, held_name), None
    return _part(table, parts, "train"), _part(table, parts, held_name) if held_name in parts else None


def _split_of(value: object, place: str) -> str:
    word = str(value).strip().lower()
    if word == "test":
        return word
    if word not in SPLITS:
        raise UtcError(f"unknown split {word!r}", where=place, fix="write train, val or test", code="data/labels")
    return SPLITS[word]


def _part(table: Table, parts: Sequence[str], name: str) -> Table:
    chosen = [i for i, part in enumerate(parts) if part == name]
    if not chosen:
        raise UtcError(f"no row has the split {name!r}", where=str(table.path), code="data/not-found")
    rows, places = tuple(table.rows[i] for i in chosen), tuple(table.places[i] for i in chosen)
    return Table(table.path, table.columns, rows, places)


def is_missing(value: object) -> bool:
    """Whether a cell says nothing."""
    return value is None or (isinstance(value, str) and not value.strip()) or value != value


def label_of(value: object) -> str:
    """A label as a text; whole numbers are written alike, whatever the file made of them."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


_WHOLE = re.compile(r"(-?\d+)\.0+")  # pandas writes 1.0 for 1 where a row of the column is empty


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The distinct labels in order: numbers by value, words by alphabet."""
    found = set(labels)
    if all(re.fullmatch(r"-?\d+", name) for name in found):
        return tuple(sorted(found, key=int))
    return tuple(sorted(found))


def number_of(value: object) -> float | None:
    """A finite number; None where there is none."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def several(value: object) -> list[str]:
    """The labels in a cell: a list, or a text with `;`, `|` or `,` between them; a blank is no label."""
    if isinstance(value, (list, tuple)):
        return [label_of(entry) for entry in value]
    return [] if is_missing(value) else [p.strip() for p in re.split(r"[;|,]", str(value)) if p.strip()]
