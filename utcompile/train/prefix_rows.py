"""A row of values per sample: in memory, or in a file that is mapped into it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_IN_MEMORY = 2**30  # bytes of all rows; more are in a file


class Rows:
    """Tensors of one row per sample, which are written once and then read in any order.

    Args:
        like: a row of each, `(1, …)`; images in `channels_last` are read back so.
        count: how many samples there are.
        folder: where the file is made, which ends with this object; None: in memory.

    Raises:
        OSError: the disk is full.
    """

    def __init__(self, like: Sequence[Tensor], count: int, folder: Path | None) -> None:
        self.last = [t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) for t in like]
        rows = [t.permute(0, 2, 3, 1) if last else t for t, last in zip(like, self.last, strict=True)]
        self.store = [_made((count, *r.shape[1:]), r.dtype, folder) for r in rows]

    def write(self, indices: Tensor, values: Sequence[Tensor]) -> None:
        """Rows of some samples."""
        for store, value, last in zip(self.store, values, self.last, strict=True):
            store[indices] = (value.permute(0, 2, 3, 1) if last else value).to("cpu", store.dtype)

    def read(self, indices: Tensor) -> list[Tensor]:
        """The rows of some samples, in their order."""
        found = [store[indices] for store in self.store]
        return [v.permute(0, 3, 1, 2) if last else v for v, last in zip(found, self.last, strict=True)]


def file_is_needed(size: int) -> bool:
    """Whether rows of so many bytes belong in a file."""
    return size > _IN_MEMORY


def _made(shape: tuple[int, ...], dtype: torch.dtype, folder: Path | None) -> Tensor:
    if folder is None:
        return torch.empty(shape, dtype=dtype)
    size = prod(shape) * dtype.itemsize
    with tempfile.TemporaryFile(dir=folder) as file:  # the map keeps it after it is closed
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, and no crash at a later write
        else:
            file.truncate(size)
        mapped = np.memmap(file, np.uint8, "r+", shape=(size,))
    return torch.from_numpy(mapped).view(dtype).view(shape)
