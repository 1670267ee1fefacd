"""Runs that compute and leave no trace: values of tensors and random numbers are put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

_SEED = 5_831_907_264  # one that no model sets by itself: with 0, a capture without the model's own seed seemed right


def random_numbers_kept(model: nn.Module) -> AbstractContextManager[tuple[int, ...]]:
    """Keep torch's random numbers as if nothing had run, on the CPU and on the GPUs of the model, which are yielded.

    They are put back only where they moved: other threads draw from the same generators.
    """
    return _kept(gpus_of(model))


@contextmanager
def _kept(gpus: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    before, on_gpus = torch.get_rng_state(), [torch.cuda.get_rng_state(i) for i in gpus]
    try:
        yield gpus
    finally:
        if not torch.equal(before, torch.get_rng_state()):
            torch.set_rng_state(before)
        for i, state in zip(gpus, on_gpus, strict=True):
            torch.cuda.set_rng_state(state, i)


def gpus_of(model: nn.Module) -> tuple[int, ...]:
    """The numbers of the CUDA devices that a model is on; where there are none, CUDA is not even initialised."""
    found = {t.device for t in [*model.parameters(), *model.buffers()]}
    return tuple(sorted({d.index or 0 for d in found if d.type == "cuda"}))


def seed(gpus: tuple[int, ...]) -> None:
    """Seed the generators that `random_numbers_kept` puts back, and no other."""
    torch.default_generator.manual_seed(_SEED)
    for i in gpus:
        torch.cuda.default_generators[i].manual_seed(_SEED)
