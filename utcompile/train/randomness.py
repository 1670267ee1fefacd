"""Seeds for one epoch, and the caller's random state as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def caller_keeps_its_state() -> Iterator[None]:
    """Whatever is seeded and drawn inside, Python, NumPy and torch go on outside as if nothing was."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def seed_epoch(seed: int, epoch: int) -> int:
    """Seed every generator for one epoch; returns the seed.

    An epoch's randomness depends on `(seed, epoch)` alone, so a resumed run needs no saved generator state and draws
    what an uninterrupted one would have drawn.
    """
    mixed = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
    return mixed
