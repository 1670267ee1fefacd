"""The summary of a run's page: the best epoch is the one that training kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from utcompile.cli.run_report import _summary
from utcompile.train.task_file import TaskFile

HISTORY = [
    {"epoch": 1, "validation_loss": 0.9, "validation_mae": 3.0, "validation_f1": 0.8, "seconds": 1.0},
    {"epoch": 2, "validation_loss": 0.5, "validation_mae": 1.0, "validation_f1": 0.2, "seconds": 1.0},
    {"epoch": 3, "validation_loss": 0.4, "validation_mae": 1.0, "validation_f1": 0.2, "seconds": 1.0},
]


@pytest.mark.parametrize(
    ("metric", "higher", "says"), [("mae", False, "1 in epoch 3 of 3"), ("f1", True, "0.8 in epoch 1 of 3")]
)
def test_the_best_epoch_is_chosen_as_in_training(metric: str, higher: bool, says: str, tmp_path: Path) -> None:
    TaskFile("regress", [], {"kind": "values"}, [metric], higher, {}).write(tmp_path)
    plan = SimpleNamespace(ruleset=SimpleNamespace(name="r"), sites=(), parameters=0)
    opened: Any = SimpleNamespace(choice=SimpleNamespace(spec="m"), plan=plan, manifest={})
    assert _summary(opened, HISTORY, tmp_path)[f"best {metric}"] == says
