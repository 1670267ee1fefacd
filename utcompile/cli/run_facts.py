"""What a run says of its data: the names of the classes, and how an image or a text becomes an input."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from utcompile.rewrite.run_facts import TASK, inputs_of, outputs_of

if TYPE_CHECKING:
    from utcompile.cli.runs import Run

__all__ = ["TASK", "labels_of", "outputs_of", "preprocessing_of"]


def labels_of(opened: Run) -> list[str] | None:
    """The names of a run's classes, in order; None where it has none."""
    found = opened.manifest.get("classes")
    return [str(label) for label in found] if isinstance(found, list) and found else None


def preprocessing_of(folder: Path, opened: Run) -> dict[str, object]:
    """How inputs were made in training: as the run says, or as the model's source does for images."""
    if found := inputs_of(folder):
        return found
    return asdict(opened.choice.preset()) if len(opened.manifest.get("inputs") or {"x": 0}) == 1 else {}
