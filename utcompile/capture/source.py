"""The line of the model's own code that runs now."""

from __future__ import annotations

import linecache
import os
import re
import sys
import types

import torch

_HERE = (torch.__path__[0] + os.sep, os.path.dirname(__file__) + os.sep)  # noqa: PTH120 - compared as text, often
_MESSAGE = re.compile(r"\b(assert|_assert|\w*check\w*|raise|\w*[wW]arn\w*|\w*[lL]og\w*|print|\w*Error)\b")
_LINES = 5  # over which a statement with a message may go


def source_line() -> str:
    """The innermost line that is neither torch's nor of this room: `model.py:41 in forward`."""
    frame = _own_frame()
    if frame is None:
        return "?"
    name = frame.f_code.co_filename.rpartition("/")[2]
    return f"{name}:{frame.f_lineno} in {frame.f_code.co_name}"


def in_message() -> bool:
    """Whether the innermost line makes the text of an assertion, an error or a warning.

    Such text is made before it is known whether it is needed: `torch._assert(n == m, f"expected {m}, got {n}")`.
    """
    frame = _own_frame()
    if frame is None:
        return False
    lines = [linecache.getline(frame.f_code.co_filename, frame.f_lineno - i) for i in range(_LINES)]
    return any(map(_MESSAGE.search, lines))


def in_own_code() -> bool:
    """Whether the function that runs was called by neither torch nor this room."""
    frame = sys._getframe(2)
    return not frame.f_code.co_filename.startswith(_HERE)


def _own_frame() -> types.FrameType | None:
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    return frame
