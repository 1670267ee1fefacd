"""What a run writes to its folder, and how: the best checkpoint, the last one with its state, the history.

    out/…                       the best checkpoint, as the caller's `save` writes it
    out/last/…                  the last checkpoint
    out/last/training_state.pt  optimizer, schedule, epochs done, history, settings
    out/history.jsonl           one line per epoch
    out/.lock                   while a process trains: its number

Everything is written in a draft folder, flushed to the disk and then renamed, so that a process that is killed at any
moment leaves a folder that resumes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from utcompile.errors import UtcError
from utcompile.files import draft, path_of, replace_file, reported, sync_folder, write_new
from utcompile.plain_data import JsonObject
from utcompile.rewrite import MANIFEST, TENSORS, move_checkpoint
from utcompile.train.run_lock import RunLock
from utcompile.train.run_state import read_state, state_bytes

STATE = "training_state.pt"
HISTORY = "history.jsonl"
_OLD = ".last-old"

SaveOrLoad = Callable[[Path], object]


class RunFolder:
    """The folder of one run; inside `with` it may be locked, and a run that fails at once leaves no folder.

    Args:
        out: where; made if it is missing.
        save, load: write the model's trained parts to a folder, and read them back.
    """

    def __init__(self, out: str | Path, save: SaveOrLoad, load: SaveOrLoad) -> None:
        self.out, self.save, self.load = path_of(out, "out"), save, load
        self.last, self.lock, self.is_new = self.out / "last", RunLock(self.out), False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is not None and self.is_new and self.lock.is_taken:
                shutil.rmtree(self.out, ignore_errors=True)
        finally:
            with reported("the run's lock cannot be removed", self.lock.path):
                self.lock.free()

    def start(self) -> None:
        """Make the folder for a new run, and lock it.

        Raises:
            UtcError: it contains a run or a checkpoint already, or another process trains there.
        """
        if self.out.exists() and not self.out.is_dir():
            raise UtcError("the run folder is a file", where=str(self.out), fix="give another path", code="train/run")
        with reported("the run folder cannot be made", self.out):
            self.is_new = self._make()
            self._lock()
        held = next((p for p in (self.last / STATE, self.out / HISTORY) if p.exists()), None)
        if held is not None:
            raise UtcError(
                "the folder contains a run already",
                where=str(self.out),
                fix="continue it with resume=True (--resume), or give another folder",
                code="train/run",
            )
        if not self.lock.was_left and any((self.out / name).exists() for name in (MANIFEST, TENSORS, STATE)):
            raise UtcError(
                "the folder contains a checkpoint already",
                where=str(self.out),
                fix="give another folder",
                code="train/run",
            )

    def resume(self, settings: Mapping[str, object], parts: tuple[str, ...]) -> JsonObject:
        """Lock the folder, load the last checkpoint into the model and return its state.

        Args:
            parts: of the state, what has a `state_dict` in it.

        Raises:
            UtcError: there is no run, its state is damaged, it was started with other settings, or another process
                trains there.
        """
        if self.out.is_dir():
            with reported("the run folder cannot be written to", self.out):
                self._lock()
        path = self.last / STATE
        if not path.is_file():
            raise UtcError(
                "there is no run to resume",
                where=str(self.out),
                why=f"{path} does not exist",
                fix="start it without resume, or correct the folder",
                code="train/run",
            )
        state = read_state(path, parts)
        differing = [
            f"{name} was {state['settings'].get(name)!r}, is {value!r}"
            for name, value in settings.items()
            if state["settings"].get(name) != value
        ]
        if differing:
            raise UtcError(
                "the run was started with other settings",
                where=str(self.out),
                why="; ".join(differing),
                fix="resume with the same settings, or start a new run in another folder",
                code="train/run",
            )
        self.load(self.last)
        with reported("the history cannot be written", self.out / HISTORY):
            replace_file(self.out / HISTORY, "".join(map(_line, state["history"])).encode())
        return state

    def keep_best(self) -> None:
        """Write the model as the best checkpoint."""
        with reported("the best checkpoint cannot be written", self.out), draft(self.out) as folder:
            self.save(folder)
            move_checkpoint(folder, self.out)

    def keep_last(self, state: Mapping[str, object], history: Sequence[Mapping[str, object]]) -> None:
        """Write the model and its training state as the last checkpoint, and the history."""
        old = self.out / _OLD
        with reported("the last checkpoint cannot be written", self.out), draft(self.out) as folder:
            new = folder / "last"
            os.mkdir(new)  # noqa: PTH102
            self.save(new)
            write_new(new / STATE, state_bytes({**state, "history": [dict(entry) for entry in history]}))
            sync_folder(new)
            self.is_new = False  # from here on the folder has something to lose
            _remove(old)
            if self.last.exists():
                os.rename(self.last, old)  # noqa: PTH104
            os.rename(new, self.last)  # noqa: PTH104
            sync_folder(self.out)
            _remove(old)
            replace_file(self.out / HISTORY, "".join(map(_line, history)).encode())

    def load_best(self) -> None:
        """Load the best checkpoint into the model."""
        self.load(self.out)

    def _make(self) -> bool:
        """Make the folder; returns whether it was not there."""
        try:
            self.out.mkdir(parents=True)
        except FileExistsError:
            return False
        return True

    def _lock(self) -> None:
        self.lock.take()
        # Killed between the two renames of `keep_last`: the older checkpoint is whole.
        old = self.out / _OLD
        if old.is_dir() and not old.is_symlink() and not self.last.exists():
            os.rename(old, self.last)  # noqa: PTH104
        _remove(old)


def _remove(folder: Path) -> None:
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _line(entry: Mapping[str, object]) -> str:
    return json.dumps(dict(entry)) + "\n"
