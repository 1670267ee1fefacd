"""`torch.utils.checkpoint` inside `disable_tuners` is refused: backward calls again, and the context may be over.

Backward may run outside the context, or on a GPU's own thread, which sees no context. Then the call of backward has the
tuners that the call of forward had not, and the gradients are of another function.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch.utils import checkpoint

from utcompile.errors import UtcError
from utcompile.rewrite.switch import Switch, present


def refuse_checkpoint(switch: Switch) -> None:
    """Raise where a checkpoint lies between a call and the context that has turned the tuners off.

    Raises:
        UtcError: backward makes this call again, or is making it.
    """
    if torch.compiler.is_compiling():  # a checkpoint that is compiled too has both calls in one graph
        return
    choice, frames = present(switch.innermost), list(checkpoint_frames())
    if len(frames) <= choice.checkpoints:
        return
    # a reentrant checkpoint calls without gradients itself, and what its caller wanted is not to be seen any more
    if torch.is_grad_enabled() or (choice.has_gradients and "forward" in frames):
        raise UtcError(
            "disable_tuners is open around torch.utils.checkpoint",
            why="a checkpoint makes the call again in backward, where the context may be over: the tuners would be off "
            "in one call and on in the other",
            fix="open disable_tuners in the function that is checkpointed, or call the model there without checkpoint "
            "or inside torch.no_grad(); call backward() outside disable_tuners",
            code="tune/disabled",
        )


def checkpoint_frames() -> Iterator[str]:
    """The names of the functions of `torch.utils.checkpoint` that are running in this thread.

    A generator, because `torch.compile` leaves the frames of generators alone, and cannot trace this one.
    """
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals is vars(checkpoint):
            yield frame.f_code.co_name
        frame = frame.f_back  # type: ignore[assignment]
