"""Several GPUs."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.gpu.row import Check, Findings, NotRun


def checks(device: str, quick: bool) -> Iterator[Check]:
    """One row, which says that nothing of it is checked."""
    yield Check("several GPUs", "DistributedDataParallel", _distributed, cuda=True)


def _distributed(found: Findings) -> None:
    found.note(GPUs=torch.cuda.device_count())
    if torch.cuda.device_count() < 2:
        raise NotRun("fewer than two GPUs")
    raise NotRun("no check of several GPUs is written yet")
