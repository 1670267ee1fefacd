"""What the folder of a run says of its outputs and its inputs, where `utcompile train` wrote it."""

from __future__ import annotations

from pathlib import Path

from utcompile.plain_data import JsonObject
from utcompile.rewrite.manifest import read_json

TASK = "task.json"


def outputs_of(folder: Path) -> JsonObject:
    """What a run's outputs mean: its task, and `mean` and `std` of numbers; empty where the run does not say."""
    told = _told(folder)
    found = told.get("outputs")
    return {"task": told.get("task"), **found} if isinstance(found, dict) else {}


def inputs_of(folder: Path) -> JsonObject:
    """How an image or a text becomes an input; empty where the run does not say."""
    found = _told(folder).get("preprocessing")
    return found if isinstance(found, dict) else {}


def _told(folder: Path) -> JsonObject:
    if not (folder / TASK).is_file():
        return {}
    told = read_json(folder / TASK, "the run has no task file", "train again")
    return told if isinstance(told, dict) else {}
