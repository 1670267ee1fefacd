"""Flags for as long as a model and its capture are compared: the model's mode, the capture's `requires_grad`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from utcompile.graph.structure import structural_copy


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[nn.Module]:
    """A model in a mode: the model itself, or a structural copy where setting its flags could be noticed.

    Other threads, which may be running the model, notice it, and so do classes with their own `train`, which may do
    more than set flags.
    """
    modules = list(model.modules())
    if all(m.training is training for m in modules):
        yield model
    elif threading.active_count() > 1 or any(type(m).train is not nn.Module.train for m in modules):
        yield structural_copy(model).train(training)
    else:
        flags = [m.training for m in modules]
        try:
            for m in modules:
                m.__dict__["training"] = training
            yield model
        finally:
            for m, flag in zip(modules, flags, strict=True):
                m.__dict__["training"] = flag


@contextmanager
def trainable_as(captured: nn.Module, model: nn.Module) -> Iterator[None]:
    """The capture's parameters require gradients as the model's do: torch chooses other kernels by that (`matmul`)."""
    theirs = dict(model.named_parameters(remove_duplicate=False))
    mine = [
        p for n, p in captured.named_parameters() if n in theirs and theirs[n].requires_grad and not p.requires_grad
    ]
    try:
        for parameter in mine:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in mine:
            parameter.requires_grad_(False)
