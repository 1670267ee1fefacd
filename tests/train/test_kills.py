"""A process may be killed before any operation on files: what was saved is still there, and a run resumes bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.kill_toys import Killed, dying, equal, make_tuned, train, trained
from support.train_toys import toy_data

import utcompile as utc
from utcompile.train import Data

ALL = 10_000  # more than there are


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return toy_data(tmp_path_factory.mktemp("data"))


def move(tuned: utc.TunedModule, value: float) -> list:
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data.fill_(value)
    return trained(tuned)


def count_of_save(folder: Path) -> int:
    with dying(ALL) as done:
        utc.save_tuners(make_tuned(), folder)
    return len(done)


def test_a_killed_save_leaves_the_old_pair_or_the_new_one(tmp_path: Path) -> None:
    tuned, other, states = make_tuned(), make_tuned(), []
    operations = count_of_save(tmp_path / "counted")
    assert operations > 10
    for before in range(0, operations, 2):
        folder = tmp_path / str(before)
        old = move(tuned, 1.0)
        utc.save_tuners(tuned, folder)
        new = move(tuned, 2.0)
        with pytest.raises(Killed), dying(before):
            utc.save_tuners(tuned, folder)
        found = trained(utc.load_tuners(other, folder))
        assert equal(found, old) or equal(found, new)
        states.append(equal(found, new))
        move(tuned, 3.0)
        utc.save_tuners(tuned, folder)
        assert equal(trained(utc.load_tuners(other, folder)), trained(tuned))
        assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "tuners.safetensors"]
    assert states == sorted(states) and states[0] is False and states[-1] is True


def test_a_first_save_that_is_killed_can_be_done_again(tmp_path: Path) -> None:
    tuned = make_tuned()
    for before in range(0, count_of_save(tmp_path / "counted"), 3):
        with pytest.raises(Killed), dying(before):
            utc.save_tuners(tuned, tmp_path / str(before))
        utc.save_tuners(tuned, tmp_path / str(before))
        utc.load_tuners(tuned, tmp_path / str(before))


def check_killed_run(out: Path, data: Data, expected: list, seed: int) -> None:
    """What a run that was killed has left: its best checkpoint is whole, and it goes on to the same end."""
    resumes = (out / "last" / "training_state.pt").exists() or (out / ".last-old").exists()
    if (out / "manifest.json").exists() or resumes:
        utc.load_tuners(make_tuned(), out)
    tuned = make_tuned()
    train(tuned, data, out, seed=seed, resume=resumes)
    assert equal(trained(tuned), expected)
    assert sorted(p.name for p in out.iterdir()) == ["history.jsonl", "last", "manifest.json", "tuners.safetensors"]
    assert len((out / "history.jsonl").read_text().splitlines()) == 2


def whole_run(data: Data, out: Path, seed: int) -> tuple[list, int]:
    tuned = make_tuned()
    with dying(ALL) as done:
        train(tuned, data, out, seed=seed)
    return trained(tuned), len(done)


def test_a_killed_run_resumes_bit_for_bit(data: Data, tmp_path: Path) -> None:
    expected, operations = whole_run(data, tmp_path / "whole", 0)
    assert operations > 60
    for before in range(0, operations, 23):
        out = tmp_path / str(before)
        with pytest.raises(Killed), dying(before):
            train(make_tuned(), data, out)
        check_killed_run(out, data, expected, 0)


# a process of its own, which never runs a backward pass: autograd's threads do not survive a fork
ZYGOTE = """
import os, signal, sys
from pathlib import Path
from support.kill_toys import dying, make_tuned, train
from support.train_toys import toy_data

out, operations, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
data = toy_data(out)
make_tuned()
for before in range(operations):
    child = os.fork()
    if not child:
        with dying(before, lambda: os.kill(os.getpid(), signal.SIGKILL)):
            train(make_tuned(), data, out / str(before), seed=seed)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
"""


@pytest.mark.full
@pytest.mark.parametrize("seed", range(5))
def test_processes_that_are_killed_before_each_operation(seed: int, data: Data, tmp_path: Path) -> None:
    expected, operations = whole_run(data, tmp_path / "whole", seed)
    command = [sys.executable, "-W", "ignore", "-c", ZYGOTE, str(tmp_path), str(operations), str(seed)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    for before in range(operations):
        check_killed_run(tmp_path / str(before), data, expected, seed)
