"""`training_state.pt`: written with plain data alone, and read as what anybody may have written."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from utcompile.errors import UtcError
from utcompile.plain_data import JsonObject
from utcompile.train.settings import Settings

_NUMBERS = ("epoch", "train_loss", "validation_loss", "lr", "seconds")


class HasState(Protocol):
    """An optimizer, a schedule, a scaler, averages."""

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state: dict[str, object], /) -> None: ...


def state_bytes(state: Mapping[str, object]) -> bytes:
    """A state as a file's content."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def read_state(path: Path, parts: tuple[str, ...]) -> JsonObject:
    """The state of a run.

    Args:
        parts: what has a `state_dict` in it.

    Raises:
        UtcError: it is damaged, or no such state.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler raise nearly anything
        why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise _unreadable(path, why) from error
    if not isinstance(state, dict):
        raise _unreadable(path, f"it is a {type(state).__name__}")
    kinds = {"settings": dict, "history": list, **dict.fromkeys(parts, dict)}
    for name, kind in kinds.items():
        if not isinstance(state.get(name), kind):
            raise _unreadable(path, f"its {name!r} is no {kind.__name__}")
    history = state["history"]
    state["settings"] = Settings.completed(state["settings"])
    numbers = (*_NUMBERS, f"validation_{state['settings']['metric']}")
    for i, entry in enumerate(history):
        good = isinstance(entry, dict) and all(type(entry.get(key)) in (int, float) for key in numbers)
        if not good or entry["epoch"] != i + 1:
            raise _unreadable(path, f"entry {i} of its history is not that of epoch {i + 1}")
    if not history or len(history) > state["settings"].get("epochs", 0):
        raise _unreadable(path, f"its history has {len(history)} epochs")
    return state


def load_part(part: HasState, state: JsonObject, name: str, path: Path) -> None:
    """Load the `state_dict` of an optimizer, a schedule or a scaler.

    Raises:
        UtcError: it does not fit.
    """
    mine, theirs = part.state_dict(), state[name]
    if mine.keys() != theirs.keys() or any(
        _kind(theirs[k]) not in (_kind(v), None) and v is not None for k, v in mine.items()
    ):
        raise _unreadable(path, f"its {name!r} has other entries than {', '.join(mine)}")
    try:
        part.load_state_dict(theirs)
    except Exception as error:  # whatever an optimizer makes of what it is given
        raise _unreadable(path, f"its {name!r} does not fit: {type(error).__name__}: {error}") from error


def _kind(value: object) -> type | None:
    """What a value is; all numbers are of one kind, and None of none."""
    return None if value is None else float if isinstance(value, int | float) else type(value)


def _unreadable(path: Path, why: str) -> UtcError:
    return UtcError(
        "the state of the run cannot be read",
        where=str(path),
        why=why,
        fix="start a new run in another folder",
        code="train/run",
    )
