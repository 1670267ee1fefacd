"""What a run writes to its folder, and how: the best checkpoint, the last one with its state, the history.

    out/…                       the best checkpoint, as the caller's `save` writes it
    out/last/…                  the last checkpoint
    out/last/training_state.pt  optimizer, schedule, epochs done, history, settings
    out/history.jsonl           one line an epoch

Everything is written beside its place and then renamed, so that a process killed at any moment leaves a folder that
resumes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from utcompile.errors import UtcError

STATE = "training_state.pt"
HISTORY = "history.jsonl"

SaveOrLoad = Callable[[Path], object]


class RunFolder:
    """The folder of one run.

    Args:
        out: where; made if it is missing.
        save, load: write the model's trained parts to a folder, and read them back.
    """

    def __init__(self, out: str | Path, save: SaveOrLoad, load: SaveOrLoad) -> None:
        self.out, self.save, self.load = Path(out), save, load
        self.last = self.out / "last"

    def start(self) -> None:
        """Make the folder for a new run.

        Raises:
            UtcError: it holds a run already.
        """
        self._recover()
        if (self.last / STATE).exists() or (self.out / HISTORY).exists():
            raise UtcError(
                "the folder holds a run already",
                where=str(self.out),
                fix="continue it with resume=True (--resume), or give another folder",
            )
        if self.out.exists() and not self.out.is_dir():
            raise UtcError("the run folder is a file", where=str(self.out), fix="give another path")
        self.out.mkdir(parents=True, exist_ok=True)

    def resume(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Load the last checkpoint into the model and return its state.

        Raises:
            UtcError: there is no run, its state is damaged, or it was started with other settings.
        """
        self._recover()
        path = self.last / STATE
        if not path.is_file():
            raise UtcError(
                "there is no run to resume",
                where=str(self.out),
                why=f"{path} does not exist",
                fix="start it without resume, or correct the folder",
            )
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file makes the unpickler raise nearly anything
            raise UtcError(
                "the state of the run cannot be read",
                where=str(path),
                why=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
                fix="start a new run in another folder",
            ) from error
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
            )
        self.load(self.last)
        _write(self.out / HISTORY, "".join(map(_line, state["history"])))
        return state

    def keep_best(self) -> None:
        """Write the model as the best checkpoint."""
        draft = self._fresh(self.out / ".best")
        self.save(draft)
        for file in sorted(draft.iterdir()):
            target = self.out / file.name
            if target.is_dir():
                shutil.rmtree(target)
            file.replace(target)
        draft.rmdir()

    def keep_last(self, state: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
        """Write the model and its training state as the last checkpoint, and the newest line of the history."""
        draft, old = self._fresh(self.out / ".last"), self.out / ".last-old"
        self.save(draft)
        torch.save({**state, "history": [dict(entry) for entry in history]}, draft / STATE)
        shutil.rmtree(old, ignore_errors=True)
        if self.last.exists():
            self.last.rename(old)
        draft.rename(self.last)
        shutil.rmtree(old, ignore_errors=True)
        with (self.out / HISTORY).open("a", encoding="utf-8") as file:
            file.write(_line(history[-1]))

    def load_best(self) -> None:
        """Load the best checkpoint into the model."""
        self.load(self.out)

    def _recover(self) -> None:
        # Killed between the two renames of `keep_last`: the older checkpoint is whole.
        old = self.out / ".last-old"
        if old.is_dir() and not self.last.exists():
            old.rename(self.last)

    @staticmethod
    def _fresh(folder: Path) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(dict(entry)) + "\n"


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
