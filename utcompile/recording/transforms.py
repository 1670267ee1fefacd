"""Operators of torch that take functions: `torch.cond`, `while_loop`, `flex_attention`, `vmap`, `jvp`.

What they run is not a sequence of calls that a recording sees: in the root module they are an error that names them,
and in a submodule that module stays one node.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from functools import partial

import torch
from torch._functorch import eager_transforms
from torch.overrides import _pop_mode_temporarily

from utcompile.recording.active import Function, Replacement, current

_TORCH = torch.__path__[0] + os.sep
_DIFFERENTIATE = [n for n in ("_jvp_with_argnums", "_vjp_with_argnums") if hasattr(eager_transforms, n)]
_WRITTEN = {"wrapped": "vmap", "wrapper": "grad", "wrapper_fn": "jacrev"}  # the names that torch's code gives them
_HOMES = ("torch._higher_order_ops", "torch.nn.attention")


def running_transform() -> bool:
    """Whether a function that vmap, grad or jvp of torch.func transforms runs now."""
    return torch._C._functorch.maybe_current_level() is not None


def operator_name() -> str:
    """The operator of torch around the innermost line: `cond`, `vmap`, `flex_attention`."""
    frame: types.FrameType | None = sys._getframe(1)
    found = ""
    while frame is not None:
        code = frame.f_code
        if frame.f_globals.get("__name__", "").startswith((*_HOMES, "torch._functorch")):
            found = code.co_name
        elif found and not code.co_filename.startswith(_TORCH):
            break
        frame = frame.f_back
    return _WRITTEN.get(found, found) or "vmap or grad"


def _compile(original: Callable[..., Function]) -> Callable[..., Function]:
    """Operators that compile their functions are refused by name, or run as if nothing was recorded."""

    def compiled(*args: object, **kwargs: object) -> Function:
        home = sys._getframe(1).f_globals.get("__name__", "")
        made = original(*args, **kwargs)
        recorder = current()
        if recorder is None or not home.startswith(_HOMES):
            return made
        return _unrecorded(made) if recorder.is_silent else partial(recorder.refuse_operator, compiles=True)

    return compiled


def _transform(original: Function) -> Function:
    def refusing(*args: object, **kwargs: object) -> object:
        recorder = current()
        return (original if recorder is None or recorder.is_silent else recorder.refuse_operator)(*args, **kwargs)

    return refusing


REPLACEMENTS: tuple[Replacement, ...] = (
    (torch, "compile", _compile),
    *((eager_transforms, name, _transform) for name in _DIFFERENTIATE),
)


def _unrecorded(function: Function) -> Function:
    def call(*args: object, **kwargs: object) -> object:
        with _pop_mode_temporarily():
            return function(*args, **kwargs)

    return call
