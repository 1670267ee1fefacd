"""Calls whose effect no graph has: hooks on gradients, and checkpoints. A recording notes them with the consequence."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import checkpoint
from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
    from utcompile.capture.recorder import Recorder

_HOOKS = ("register_hook", "register_post_accumulate_grad_hook")
_GENERATORS = ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")
HOOKED = "hooks on a tensor's gradient are dropped, gradients of the capture are those without them"
CHECKPOINTED = "gradient checkpointing is dropped, training keeps what it would have computed again"


@contextmanager
def dropped_noted(recorder: Recorder) -> Iterator[None]:
    """Note hooks that the model's forward sets on tensors, and what it runs under `torch.utils.checkpoint`."""
    tensor: Any = torch.Tensor
    hooks = {name: getattr(tensor, name) for name in _HOOKS}
    generator = next(name for name in _GENERATORS if hasattr(checkpoint, name))
    plain = getattr(checkpoint, generator)

    def registered(hook: Any) -> Any:
        def call(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if recorder.is_silent:
                return hook(self, *args, **kwargs)
            recorder.note(HOOKED)
            return RemovableHandle(OrderedDict())

        return call

    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if not recorder.is_silent:
            recorder.note(CHECKPOINTED)
        return plain(*args, **kwargs)

    for name, hook in hooks.items():
        setattr(tensor, name, registered(hook))
    setattr(checkpoint, generator, checkpointed)
    try:
        yield
    finally:
        for name, hook in hooks.items():
            setattr(tensor, name, hook)
        setattr(checkpoint, generator, plain)
