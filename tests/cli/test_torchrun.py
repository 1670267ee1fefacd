"""`utcompile train` in two processes: the losses of one, one run folder, one display; resumed in another number of them.

They are started by `torchrun`, by `accelerate launch`, and by `torchrun` on two nodes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.cli_toys import MODEL, RULES, passed, write_data
from support.processes import Ended, accelerated, launched, on_two_nodes

pytestmark = pytest.mark.full
SETTINGS = ("--batch-size", "8", "--lr", "0.001", "--no-report", "--cache", "none")
WEIGHTED = ("--batch-size", "4", "--accumulate", "2", "--class-weights", "balanced")  # the gradient of a batch of 8
NEAR = 1e-5  # sums over processes are in another order, for two epochs


def history(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def check_same(run: Path, other: Path) -> None:
    assert len(history(run)) == len(history(other)) == 2
    for mine, theirs in zip(history(run), history(other), strict=True):
        for name in ("train_loss", "validation_loss", "validation_accuracy", "lr"):
            assert mine[name] == pytest.approx(theirs[name], rel=NEAR, abs=NEAR), name


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """39 samples to train on, so that the last batch is shared unevenly."""
    return write_data(tmp_path_factory.mktemp("data") / "data.npz", samples=43)


def command(data: Path, out: Path) -> tuple[str | Path, ...]:
    return "train", *MODEL, *RULES, *SETTINGS, "-d", data, "--epochs", "2", "-o", out


@pytest.fixture(scope="module")
def of_one(data: Path) -> Path:
    """The run of one process."""
    run = data.parent / "one"
    passed(*command(data, run))
    return run


@pytest.fixture(scope="module")
def weighted(data: Path) -> Path:
    """The run of one process with large batches, in which rare classes weigh more."""
    run = data.parent / "weighted"
    passed(*command(data, run), "--class-weights", "balanced")
    return run


def check_run(done: list[Ended], run: Path, other: Path) -> None:
    """What processes have trained and said, compared with the run of one process."""
    assert [one.returncode for one in done] == [0] * len(done), done[0].stderr + done[-1].stderr
    check_same(other, run)
    assert sum(one.stderr.count("epoch 1/2") for one in done) == 1
    assert sum(one.stdout.count("saved in") for one in done) == 1
    assert sorted(p.name for p in run.iterdir()) == sorted(p.name for p in other.iterdir())


def test_two_processes_train_as_one(data: Path, of_one: Path, tmp_path: Path) -> None:
    run = tmp_path / "two"
    check_run([launched(2, "-m", "utcompile", *command(data, run))], run, of_one)

    again = launched(2, "-m", "utcompile", *command(data, run))
    assert again.returncode != 0 and "contains a run already" in again.stderr
    small = launched(2, "-m", "utcompile", *command(data, tmp_path / "few"), "--batch-size", "1")
    assert small.returncode != 0 and "a batch of 1 cannot be shared by 2 processes" in small.stderr


def test_accelerate_launch_trains_as_one_process_does(data: Path, weighted: Path, tmp_path: Path) -> None:
    run = tmp_path / "two"
    check_run([accelerated(2, "-m", "utcompile", *command(data, run), *WEIGHTED)], run, weighted)


def test_two_nodes_train_as_one_process_does(data: Path, of_one: Path, tmp_path: Path) -> None:
    run = tmp_path / "two"
    check_run(on_two_nodes("-m", "utcompile", *command(data, run)), run, of_one)


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
def test_a_run_is_resumed_in_another_number_of_processes(
    data: Path, of_one: Path, tmp_path: Path, first: int, second: int
) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    stopped = launched(first, script, *command(data, tmp_path / "parts"))
    assert stopped.returncode != 0 and len(history(tmp_path / "parts")) == 1, stopped.stderr
    resumed = launched(
        second, "-m", "utcompile", "train", "--resume", "--no-report", "--cache", "none", "-o", tmp_path / "parts"
    )
    assert resumed.returncode == 0, resumed.stderr
    check_same(of_one, tmp_path / "parts")
