"""Labels and numbers of rows as targets: what `classify`, `text`, `multilabel` and `regress` train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from utcompile.errors import UtcError
from utcompile.train.damaged import Bad
from utcompile.train.split import check_several, stratified
from utcompile.train.tables import Table, class_names, is_missing, label_of, number_of, several

LABEL = ("label", "labels", "class", "target", "category", "sentiment", "y")
_NUMBERS = ("target", "targets", "value", "score", "label", "y")
T = TypeVar("T")
Target = int | Tensor


@dataclass(frozen=True)
class Targets:
    """The targets of training and validation rows.

    Attributes:
        `train`, `held`: one target for each row in use: an int, or a float tensor.
        rows, held_rows: the indices of these rows in their tables.
        names: of the classes, labels or numbers.
        counts: training samples per class or label.
        standard: mean and standard deviation per number, of `regress`.
    """

    train: Sequence[Target]
    held: Sequence[Target]
    rows: list[int]
    held_rows: list[int]
    names: tuple[str, ...]
    counts: tuple[int, ...] | None = None
    standard: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def columns_of(table: Table, task: str, given: Sequence[str], inputs: Sequence[str]) -> list[str]:
    """The columns of the targets.

    Args:
        given: what the user named; several columns of 0 and 1, or of numbers, for `multilabel` and `regress`.
        inputs: columns that are none.
    """
    if given:
        return [table.column(name, (), "label") for name in given]
    if task == "regress":
        return [table.column(None, _NUMBERS, "label")]
    if task == "multilabel" and not {"label", "labels"} & {name.lower() for name in table.columns}:
        others = [name for name in table.columns if name not in (*inputs, "split")]
        if others and all(row.get(n) in ("0", "1", 0, 1, True, False) for row in table.rows for n in others):
            return others
    return [table.column(None, LABEL, "label")]


def check_cells(table: Table, columns: Sequence[str], task: str) -> list[Bad]:
    """The rows whose target is missing or is no number (of several columns of labels: 0 or 1) where it must be one."""
    bad = []
    for index, (row, place) in enumerate(zip(table.rows, table.places, strict=True)):
        for name in columns:
            value = row.get(name)
            if task == "regress" or (task == "multilabel" and len(columns) > 1):
                number, wanted = number_of(value), "no number" if task == "regress" else "neither 0 nor 1"
                if number is None or (task == "multilabel" and number not in (0, 1)):
                    why = "is missing" if is_missing(value) else f"is {value!r:.40}, which is {wanted}"
                    bad.append(Bad(index, place, f"{name} {why}"))
                    break
            elif is_missing(value) and task != "multilabel":
                bad.append(Bad(index, place, f"the {name} is missing"))
                break
    return bad


def make_targets(
    task: str,
    train: Table,
    held: Table | None,
    columns: Sequence[str],
    keep: list[int],
    keep_held: list[int],
    seed: int,
    *,
    measured: bool = False,
) -> Targets:
    """Targets of the rows that are kept; without held-out rows a tenth of them is held out.

    Args:
        measured: the rows are measured and not trained on, so they may lack classes, and all are held out.

    Raises:
        UtcError: a validation label that no training row has, a single class, or too few rows.
    """
    rows = [train.rows[i] for i in keep]
    held_rows = [] if held is None else [held.rows[i] for i in keep_held]
    if task == "multilabel":
        return _multilabel(train, held, rows, held_rows, columns, keep, keep_held, seed, measured)
    if task == "regress":
        values, others = ([_numbers(row, columns) for row in part] for part in (rows, held_rows))
        if held is None:
            values, others, keep, keep_held = _halved(values, keep, [0] * len(values), seed, measured)
        stacked = torch.stack(values or others)
        mean, std = stacked.mean(0), stacked.std(0, correction=0)
        if bool((std == 0).any()) and not measured:
            name = columns[int((std == 0).nonzero()[0])]
            raise UtcError(f"all values of {name!r} are the same", where=str(train.path), code="data/labels")
        standard = (tuple(mean.tolist()), tuple(std.tolist()))
        return Targets(values, others, keep, keep_held, tuple(columns), standard=standard)
    labels = [label_of(row[columns[0]]) for row in rows]
    names = class_names(labels)
    if not measured:
        check_several(names, train.path)
    number = {name: i for i, name in enumerate(names)}
    found = [number[label] for label in labels]
    found_held: list[int] = []
    for i, row in zip(keep_held, held_rows, strict=False):
        label = label_of(row[columns[0]])
        if label not in number and held is not None:
            raise _unseen(label, held.places[i], names)
        found_held.append(number[label])
    if held is None:
        found, found_held, keep, keep_held = _halved(found, keep, found, seed, measured)
    counts = tuple(np.bincount(np.array(found, dtype=int), minlength=len(names)).tolist())
    return Targets(found, found_held, keep, keep_held, names, counts)


def _multilabel(
    train: Table,
    held: Table | None,
    rows: Sequence[Mapping[str, object]],
    held_rows: Sequence[Mapping[str, object]],
    columns: Sequence[str],
    keep: list[int],
    keep_held: list[int],
    seed: int,
    measured: bool,
) -> Targets:
    names: tuple[str, ...]
    if len(columns) > 1:
        names = tuple(columns)
        values, others = ([_numbers(row, columns) for row in part] for part in (rows, held_rows))
    else:
        sets = [several(row.get(columns[0])) for row in rows]
        names = class_names(label for labels in sets for label in labels)
        values = [_hot(labels, names) for labels in sets]
        others = []
        for i, row in zip(keep_held, held_rows, strict=False):
            labels = several(row.get(columns[0]))
            if held is not None and (unseen := [label for label in labels if label not in names]):
                raise _unseen(unseen[0], held.places[i], names)
            others.append(_hot(labels, names))
    if not names:
        raise UtcError("no sample has a label", where=str(train.path), code="data/labels")
    if held is None:
        values, others, keep, keep_held = _halved(values, keep, [int(v.argmax()) for v in values], seed, measured)
    counts = tuple(int(n) for n in torch.stack(values or others).sum(0))
    if 0 in counts and not measured:
        raise UtcError(
            f"no training sample has the label {names[counts.index(0)]!r}",
            where=str(train.path),
            fix="give more samples, or leave out the label",
            code="data/labels",
        )
    return Targets(values, others, keep, keep_held, names, counts)


def _halved(
    targets: list[T], keep: list[int], labels: Sequence[int], seed: int, whole: bool
) -> tuple[list[T], list[T], list[int], list[int]]:
    chosen, held = stratified(labels, seed, whole=whole)
    first, second = ([targets[i] for i in part] for part in (chosen, held))
    return first, second, [keep[i] for i in chosen], [keep[i] for i in held]


def _numbers(row: Mapping[str, object], columns: Sequence[str]) -> Tensor:
    """The numbers in some cells, which have been checked."""
    return torch.tensor([number_of(row[column]) or 0.0 for column in columns])


def _hot(labels: Sequence[str], names: Sequence[str]) -> Tensor:
    target = torch.zeros(len(names))
    for label in labels:
        target[names.index(label)] = 1.0
    return target


def _unseen(label: str, place: str, names: Sequence[str]) -> UtcError:
    return UtcError(
        f"the validation sample has the label {label!r}, which no training sample has",
        where=place,
        why=f"the training samples have {', '.join(names[:10])}{' …' if len(names) > 10 else ''}",
        fix="correct the label, or add training samples of it",
        code="data/labels",
    )
