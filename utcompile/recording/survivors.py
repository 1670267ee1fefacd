"""A tracked number must not outlive its recording: a cache, a global or a config may have kept it.

Met by torch later, it would be a wrong number or an error. So after every recording the numbers that still live are
replaced, wherever they are kept, by their plain values.
"""

from __future__ import annotations

import gc
import sys
import traceback
import types
from collections import deque

from utcompile.errors import UtcError
from utcompile.graph.nested import tuple_like
from utcompile.recording.active import current
from utcompile.recording.caches import CACHED
from utcompile.recording.tracked import Sizes, live, plain


def release() -> None:
    """Replace the tracked numbers that are kept somewhere after the last recording of this thread.

    Raises:
        UtcError: one is kept where it cannot be replaced.
    """
    if current() is not None or not live():
        return
    _clear_frames(sys.exc_info()[1])
    for generation in (1, 2):  # most are young; looking at all objects of a large process takes a second
        gc.collect(generation)
        if not live():
            return
    _replace_all()
    if live():
        gc.collect()
    left = live()
    if left:
        raise UtcError(
            "the model's code keeps a size of this recording where it cannot be found",
            why=f"{len(left)} numbers outlive the recording, kept by {_keeper(left[0])}",
            fix="keep int(size) instead, or move that code into a submodule, which stays one node",
            code="capture/state",
        )


def _replace_all() -> None:
    numbers = live()
    while numbers:
        number = numbers.pop()
        _replace(number, number.value, 0)


def _clear_frames(error: BaseException | None) -> None:
    """Where a recording ended in an error, the frames of its traceback keep the values that were computed."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        for frame, _ in traceback.walk_tb(error.__traceback__):
            frame.f_locals  # noqa: B018 - a copy that was read before is brought up to date, and lets go
        error = error.__cause__ or error.__context__


def _keeper(number: object) -> str:
    kinds = {type(r).__name__ for r in gc.get_referrers(number) if not isinstance(r, (types.FrameType, list))}
    return ", ".join(sorted(kinds)) or "an object of C code"


def _replace(old: object, new: object, depth: int) -> None:
    """Put a plain value in the place of a number, or of a tuple that contains one, in all objects that refer to it.

    No expression here may close over `old`: its cell would be found, and changed.
    """
    for owner in gc.get_referrers(old):
        if isinstance(owner, types.FrameType) or depth > 8:
            continue
        if isinstance(owner, dict):
            _in_dict_of(owner, old, new)
        elif isinstance(owner, (list, deque)):
            for i, value in enumerate(owner):
                if value is old:
                    owner[i] = new
        elif isinstance(owner, set):
            _in_set(owner)
        elif isinstance(owner, tuple):
            _replace(owner, _plain_tuple(owner), depth + 1)
        elif isinstance(owner, types.CellType):
            owner.cell_contents = new
        elif isinstance(owner, CACHED):
            owner.cache_clear()
        elif hasattr(owner, "__dict__") and not isinstance(owner, (type, types.ModuleType)):
            _in_dict(vars(owner), old, new)


def _plain_tuple(value: tuple[object, ...]) -> tuple[object, ...]:
    return plain(value) if type(value) is Sizes else tuple_like(value, plain(tuple(value)))


def _in_dict_of(owner: dict[object, object], old: object, new: object) -> None:
    """A dict may belong to C code that must be notified of a change: to a cache of functools, or to a class."""
    keepers = [r for r in gc.get_referrers(owner) if isinstance(r, (CACHED, type))]
    for keeper in keepers:
        if isinstance(keeper, type):
            for name in [str(k) for k, v in owner.items() if v is old]:
                setattr(keeper, name, new)
        else:
            keeper.cache_clear()
    if not keepers:
        _in_dict(owner, old, new)


def _in_set(owner: set[object]) -> None:
    kept = [plain(value) for value in owner]
    owner.clear()
    owner.update(kept)


def _in_dict(owner: dict[object, object], old: object, new: object) -> None:
    for key, value in list(owner.items()):
        if value is old:
            owner[key] = new
        if key is old:
            owner[new] = owner.pop(key)
