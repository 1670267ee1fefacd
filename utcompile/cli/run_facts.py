"""What a run says of its data: the names of the classes, and how an image or a text becomes an input."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from utcompile.rewrite.manifest import read_json

if TYPE_CHECKING:
    from utcompile.cli.runs import Run

TASK = "task.json"


def labels_of(opened: Run) -> list[str] | None:
    """The names of a run's classes, in order; None where it has none."""
    found = opened.manifest.get("classes")
    return [str(label) for label in found] if isinstance(found, list) and found else None


def outputs_of(folder: Path) -> dict[str, object]:
    """What a run's outputs mean: its task, and `mean` and `std` of numbers; empty where the run does not say."""
    if not (folder / TASK).is_file():
        return {}
    told = read_json(folder / TASK, "the run has no task file", "train again")
    found = told.get("outputs") if isinstance(told, dict) else None
    return {"task": told.get("task"), **found} if isinstance(told, dict) and isinstance(found, dict) else {}


def preprocessing_of(folder: Path, opened: Run) -> dict[str, object]:
    """How inputs were made in training: as the run says, or as the model's source does for images."""
    if (folder / TASK).is_file():
        told = read_json(folder / TASK, "the run has no task file", "train again")
        found = told.get("preprocessing") if isinstance(told, dict) else None
        if isinstance(found, dict) and found:
            return found
    return asdict(opened.choice.preset()) if len(opened.manifest.get("inputs") or {"x": 0}) == 1 else {}
