"""Calls whose effect no graph has: hooks on gradients, and checkpoints. A recording notes them with the consequence."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch.utils import checkpoint
from torch.utils.hooks import RemovableHandle

from utcompile.recording.active import Function, Replacement, current

HOOKED = "hooks on a tensor's gradient are dropped, gradients of the capture are those without them"
CHECKPOINTED = "gradient checkpointing is dropped, training stores the values that it would have recomputed"


def _hook(original: Function) -> Function:
    def registered(self: torch.Tensor, *args: object, **kwargs: object) -> object:
        recorder = current()
        if recorder is None or recorder.is_silent:
            return original(self, *args, **kwargs)
        recorder.note(HOOKED)
        return RemovableHandle(OrderedDict())

    return registered


def _checkpoint(original: Function) -> Function:
    def checkpointed(*args: object, **kwargs: object) -> object:
        recorder = current()
        if recorder is not None and not recorder.is_silent:
            recorder.note(CHECKPOINTED)
        return original(*args, **kwargs)

    return checkpointed


_GENERATORS = ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")
# hooks that the model's forward sets on tensors, and what it runs under `torch.utils.checkpoint`
REPLACEMENTS: tuple[Replacement, ...] = (
    (torch.Tensor, "register_hook", _hook),
    (torch.Tensor, "register_post_accumulate_grad_hook", _hook),
    (checkpoint, next(name for name in _GENERATORS if hasattr(checkpoint, name)), _checkpoint),
)
