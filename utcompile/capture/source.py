"""The line of the model's own code that runs now."""

from __future__ import annotations

import os
import sys
import types

import torch

_HERE = (torch.__path__[0] + os.sep, os.path.dirname(__file__) + os.sep)  # noqa: PTH120 - compared as text, often


def source_line() -> str:
    """The innermost line that is neither torch's nor of this room: `model.py:41 in forward`."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_HERE):
            return f"{name.rpartition('/')[2]}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return "?"
