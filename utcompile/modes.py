"""The mode of modules for the time of a computation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Modules in eval mode and without gradients; the mode of every module inside is restored afterwards.

    Example:
        >>> model = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 1).eval())
        >>> with evaluating(model):
        ...     model[0].training, torch.is_grad_enabled()
        (False, False)
        >>> [m.training for m in model.modules()]
        [True, True, False]
    """
    modes = {inside: inside.training for module in modules for inside in module.modules()}
    for module in modules:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in modules:  # `train` first, for modules that drop a cache in it, and then the flag of each
            module.train(modes[module])
        for inside, mode in modes.items():
            inside.training = mode
