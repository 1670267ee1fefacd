"""`utcompile train` in two processes: the losses of one, one run folder, one display; resumed in another number of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.cli_toys import MODEL, RULES, passed, write_data
from support.processes import launched

pytestmark = pytest.mark.full
SETTINGS = ("--batch-size", "8", "--lr", "0.001", "--no-report", "--cache", "none")
NEAR = 1e-5  # sums over processes are in another order, for two epochs


def history(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def check_same(run: Path, other: Path) -> None:
    assert len(history(run)) == len(history(other)) == 2
    for mine, theirs in zip(history(run), history(other), strict=True):
        for name in ("train_loss", "validation_loss", "validation_accuracy", "lr"):
            assert mine[name] == pytest.approx(theirs[name], rel=NEAR, abs=NEAR), name


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """39 samples in batches of 8: the last batch is shared unevenly."""
    data = write_data(tmp_path / "data.npz", samples=43)
    common = ("train", *MODEL, *RULES, *SETTINGS, "-d", data)
    passed(*common, "--epochs", "2", "-o", tmp_path / "one")
    done = launched(2, "-m", "utcompile", *common, "--epochs", "2", "-o", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    check_same(tmp_path / "one", tmp_path / "two")
    assert done.stderr.count("epoch 1/2") == 1 and done.stdout.count("saved in") == 1
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == names

    again = launched(2, "-m", "utcompile", *common, "--epochs", "2", "-o", tmp_path / "two")
    assert again.returncode != 0 and "contains a run already" in again.stderr
    few = (*common[:-2], "-d", data, "-o", tmp_path / "few")
    small = launched(2, "-m", "utcompile", *[a if a != "8" else "1" for a in few])
    assert small.returncode != 0 and "a batch of 1 cannot be shared by 2 processes" in small.stderr


KILLED = """
import sys
import torch
from utcompile.cli import app
from utcompile.train.processes import Processes

wait, calls = Processes.agreed, []
def agreed(self, entry):
    calls.append(entry)
    if len(calls) == 2:
        raise KeyboardInterrupt  # in the second epoch, in every process
    return wait(self, entry)
Processes.agreed = agreed
sys.argv[0] = "utcompile"
app()
"""


@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 2)])
def test_a_run_is_resumed_in_another_number_of_processes(tmp_path: Path, first: int, second: int) -> None:
    data = write_data(tmp_path / "data.npz", samples=43)
    common = ("train", *MODEL, *RULES, *SETTINGS, "-d", data, "--epochs", "2")
    passed(*common, "-o", tmp_path / "whole")
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    stopped = launched(first, script, *common, "-o", tmp_path / "parts")
    assert stopped.returncode != 0 and len(history(tmp_path / "parts")) == 1, stopped.stderr
    resumed = launched(
        second, "-m", "utcompile", "train", "--resume", "--no-report", "--cache", "none", "-o", tmp_path / "parts"
    )
    assert resumed.returncode == 0, resumed.stderr
    check_same(tmp_path / "whole", tmp_path / "parts")
