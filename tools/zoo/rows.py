"""The rows of the zoo: one line of JSON for each model, appended as soon as it is known."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from utcompile.errors import UtcError

STATUSES = ("ok", "opaque", "failed", "timed out", "not built", "built")


@dataclass(frozen=True)
class Task:
    """One model to do.

    Attributes:
        verify: "none" builds it only, "shapes" captures it without computing, "full" compares values at several sizes.
    """

    library: str
    name: str
    verify: str = "shapes"

    @property
    def key(self) -> tuple[str, str]:
        """What a row of it is found by."""
        return self.library, self.name


@dataclass(frozen=True)
class Row:
    """What became of one model.

    Attributes:
        cls: the model's Python class.
        status: ok; opaque (captured, with modules that stay closed); failed; timed out; not built; built (only).
        nodes: of the graph.
        opaque: closed modules with their reasons.
        pinned: sizes that the model itself fixes.
        unreachable: parameters and buffers that the graph never reads.
        inputs: the example inputs with their shapes.
        fixed: captured at the example's sizes only.
        verified: what was compared with the model.
        guards: what the model's Python decided by sizes.
        equal, refused, false, wrong: calls at sizes that were not recorded (`Beyond`).
        reason: why it is not ok.
    """

    library: str
    name: str
    status: str
    cls: str = ""
    parameters: int = 0
    nodes: int = 0
    opaque: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()
    unreachable: int = 0
    build_seconds: float = 0.0
    capture_seconds: float = 0.0
    verify: str = ""
    verified: str = ""
    inputs: str = ""
    fixed: bool = False
    guards: tuple[str, ...] = ()
    equal: int = 0
    refused: int = 0
    false: int = 0
    wrong: tuple[str, ...] = ()
    note: str = ""
    reason: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What it is found by."""
        return self.library, self.name


class RowFile:
    """A file of rows; the last row of a model counts.

    A line that a killed run left half written is dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[tuple[str, str], Row]:
        """Every model's last row."""
        rows = (_row(line, f"{self.path}:{i}") for i, line in enumerate(self._whole_lines(), 1))
        return {row.key: row for row in rows}

    def append(self, row: Row) -> None:
        """Add one row, whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")

    def clear(self) -> None:
        """Forget every row."""
        self.path.unlink(missing_ok=True)

    def mend(self) -> None:
        """Cut off a half-written last line, so that the next row starts a new line."""
        if self.path.exists():
            text = "".join(f"{line}\n" for line in self._whole_lines())
            if text != self.path.read_text(encoding="utf-8"):
                self.path.write_text(text, encoding="utf-8")

    def _whole_lines(self) -> list[str]:
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        return text[: text.rfind("\n") + 1].splitlines()


def smallest_of_each_class(rows: Iterable[Row]) -> list[Row]:
    """The row with the fewest parameters of each library's classes; models that could not be built are left out."""
    best: dict[tuple[str, str], Row] = {}
    for row in sorted(rows, key=lambda r: (r.parameters, r.name)):
        if row.cls and row.parameters and row.status != "not built":
            best.setdefault((row.library, row.cls), row)
    return sorted(best.values(), key=lambda r: (r.library, r.cls))


def _row(line: str, where: str) -> Row:
    known = {f.name for f in fields(Row)}
    try:
        data = json.loads(line).items()
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data if k in known}
        return Row(**values)
    except (ValueError, TypeError, AttributeError) as error:
        raise UtcError("this is no row of the zoo", where=where, why=str(error), fix="delete it, or --fresh") from error
