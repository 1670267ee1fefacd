"""The lock of a run folder, leftovers of dead processes, damaged states, and disks that fail."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from support.kill_toys import make_tuned, train
from support.train_toys import toy_data

from utcompile.errors import UtcError
from utcompile.train import Data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return toy_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    train(make_tuned(), data, out)
    return out


def fails(data: Data, out: Path, *says: str, resume: bool = False) -> None:
    with pytest.raises(UtcError) as caught:
        train(make_tuned(), data, out, resume=resume)
    assert all(text in str(caught.value) for text in says), caught.value


HOLD = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); f.write('%d\\n' % __import__('os').getpid()); f.flush(); print('held', flush=True); sys.stdin.read()"


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_trainer_is_refused_with_the_number_of_the_first_until_that_dies(
    resume: bool, data: Data, finished: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(finished, tmp_path / "run") if resume else tmp_path / "run"
    out.mkdir(exist_ok=True)
    with subprocess.Popen(
        [sys.executable, "-S", "-c", HOLD, out / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
        fails(data, out, f"process {other.pid} is training in this folder", resume=resume)
        assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
        other.kill()
    train(make_tuned(), data, out, resume=resume)
    assert not (out / ".lock").exists()


def test_of_two_threads_one_trains(data: Data, tmp_path: Path) -> None:
    results: list[str] = []

    def work() -> None:
        tuned = models.pop()
        gate.wait()
        try:
            train(tuned, data, tmp_path / "run")
            results.append("trained")
        except UtcError as error:
            results.append(error.what)

    models, gate = [make_tuned(), make_tuned()], threading.Barrier(2)
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = (f"process {os.getpid()} is training in this folder", "the folder contains a run already")
    assert "trained" in results and all(r == "trained" or r in refused for r in results)
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 2


def test_leftovers_of_dead_processes_are_removed_and_those_of_living_ones_stay(
    data: Data, finished: Path, tmp_path: Path
) -> None:
    import fcntl

    out = shutil.copytree(finished, tmp_path / "run")
    for name in ("dead", "alive"):
        (out / f".utcompile-draft-{name}").mkdir()
        (out / f".utcompile-draft-{name}" / "file").touch()
    descriptor = os.open(out / ".utcompile-draft-alive", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    train(make_tuned(), data, out, resume=True)
    os.close(descriptor)
    assert [p.name for p in out.glob(".utcompile-*")] == [".utcompile-draft-alive"]


def test_a_folder_with_a_checkpoint_is_no_place_for_a_new_run(data: Data, finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    fails(data, out, "contains a run already")
    fails(data, out / "last", "contains a checkpoint already")
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("field", ["settings", "history", "optimizer", "schedule", ""])
def test_a_state_of_wrong_types_is_one_error(data: Data, finished: Path, tmp_path: Path, field: str) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    path, tuned = out / "last" / "training_state.pt", make_tuned()
    state = torch.load(path, weights_only=True)
    entry = state["history"][0]
    wrongs = [
        None,
        3,
        "x",
        [],
        {},
        {"epoch": 1},
        [{**entry, "epoch": "1"}],
        [entry, 3],
        {3: 4},
        torch.ones(2),
        [entry] * 2,
    ]
    for wrong in [*wrongs, {**state["schedule"], "step": 3}, {"state": {}, "param_groups": [3]}]:
        torch.save({**state, field: wrong} if field else wrong, path)
        with pytest.raises(UtcError, match=r"state of the run cannot be read|other settings"):
            train(tuned, data, out, resume=True)


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "mkdir"])
def test_a_disk_that_fails_is_one_error_and_the_run_resumes(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, finished: Path
) -> None:
    out = tmp_path / "run"
    original, seen = getattr(os, call), []

    def full(*args: Any, **kwargs: Any) -> Any:
        seen.append(call)
        if (out / "last").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        fails(data, out, "No space left on device")
    assert seen and (out / "last").exists()
    train(make_tuned(), data, out, resume=True)
    for name in ("tuners.safetensors", "manifest.json"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()


def test_a_failure_before_there_is_a_checkpoint_leaves_no_folder(data: Data, tmp_path: Path) -> None:
    tuned = make_tuned()
    tuned.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tuned, data, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
