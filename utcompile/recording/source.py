"""The line of the model's own code that runs now."""

from __future__ import annotations

import os
import sys
import types

import torch
from torch import nn

_ROOM = os.path.dirname(__file__) + os.sep  # noqa: PTH120 - compared as text, often
_HERE = (torch.__path__[0] + os.sep, _ROOM)
_ENTRY = _ROOM + "record.py"  # calls the model
_CALL = str(nn.modules.module.__file__)
_LAYERS = _CALL.removesuffix("module.py")


def source_line() -> str:
    """The innermost line that is neither torch's nor of this room: `model.py:41 in forward`.

    Where torch's containers call one another, and no other code does, the line of the container.
    """
    frame = own_frame() or _layer_frame()
    if frame is None:
        return "?"
    name = frame.f_code.co_filename.rpartition("/")[2]
    return f"{name}:{frame.f_lineno} in {frame.f_code.co_name}"


def in_own_code() -> bool:
    """Whether the function that runs was called by neither torch nor this room."""
    frame = sys._getframe(2)
    return not frame.f_code.co_filename.startswith(_HERE)


def own_frame() -> types.FrameType | None:
    """The innermost frame of the model whose code is neither torch's nor of this room."""
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None and (name := frame.f_code.co_filename).startswith(_HERE):
        frame = None if name == _ENTRY else frame.f_back
    return frame


def _layer_frame() -> types.FrameType | None:
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename != _ENTRY:
        name = frame.f_code.co_filename
        if name.startswith(_LAYERS) and name != _CALL:
            return frame
        frame = frame.f_back
    return None
