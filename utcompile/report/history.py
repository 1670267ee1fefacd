"""The history of a run, read from its folder."""

from __future__ import annotations

import json
from pathlib import Path

from utcompile.errors import UtcError
from utcompile.files import reported
from utcompile.train.run_folder import HISTORY


def read_history(run: Path) -> list[dict[str, float]]:
    """One entry per epoch; a last line that is being written is left out.

    Raises:
        UtcError: there is no history, or it is damaged.
    """
    path = run / HISTORY
    if not path.is_file():
        raise UtcError(
            "the run has no history",
            where=str(path),
            why="there is no such file: only `utcompile train` and `utcompile.train.fit` write it",
            fix="name the folder that `utcompile train -o` wrote",
            code="report/history",
        )
    with reported("the history cannot be read", path):
        text = path.read_bytes().decode("utf-8", errors="replace")
    entries = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        try:
            entry: object = json.loads(line)
        except ValueError as error:
            raise _damaged(path, number, str(error)) from error
        if not isinstance(entry, dict) or not all(type(v) in (int, float) for v in entry.values()):
            raise _damaged(path, number, "it is no mapping of names to numbers")
        if type(entry.get("epoch")) is not int or "train_loss" not in entry:
            raise _damaged(path, number, "it has no number of an epoch or no train_loss")
        entries.append(entry)
    if not entries:
        raise UtcError(
            "the history is empty", where=str(path), fix="wait for the run's first epoch", code="report/history"
        )
    return entries


def _damaged(path: Path, line: int, why: str) -> UtcError:
    return UtcError(
        "the history is damaged",
        where=f"{path}:{line}",
        why=why,
        fix="train again with --resume, which writes it anew",
        code="report/history",
    )
