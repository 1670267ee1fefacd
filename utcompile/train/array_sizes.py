"""How large the arrays of an `.npz` file say they are, before any of them is read."""

from __future__ import annotations

import os
import zipfile
from math import prod
from pathlib import Path
from typing import IO

from numpy.lib import format as npy

from utcompile.errors import UtcError


def check_sizes(path: Path, stream: IO[bytes]) -> None:
    """Raise where arrays claim to be larger than what the file has for them, or than the machine's memory.

    Raises:
        UtcError: as above.
        ValueError: a header is damaged.
    """
    total, memory = 0, memory_of_machine()
    with zipfile.ZipFile(stream) as archive:
        for entry in archive.infolist():
            total += entry.file_size
            if not entry.filename.endswith(".npy"):
                continue
            claimed = _claimed(archive, entry)
            if claimed > entry.file_size:
                raise UtcError(
                    f"the array {entry.filename.removesuffix('.npy')!r} cannot be read",
                    where=str(path),
                    why=f"its header claims {claimed:,} bytes, and the file has {entry.file_size:,} for it",
                    fix="write it again",
                    code="data/damaged",
                )
    if total > memory:
        raise UtcError(
            "the arrays do not fit into memory",
            where=str(path),
            why=f"they are {total / 1e9:.1f} GB, and this machine has {memory / 1e9:.1f} GB",
            fix="keep fewer or smaller images (uint8), or give a folder of image files",
            code="data/shape",
        )


def memory_of_machine() -> int:
    """The machine's memory in bytes; more than any file where that is unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return 2**63


def _claimed(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> int:
    """The bytes of an array by its header; 0 where numpy itself will refuse it."""
    with archive.open(entry) as file:
        version = npy.read_magic(file)
        readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        readers[(3, 0)] = npy.read_array_header_2_0  # which differs in how names of fields are spelled
        if version not in readers:
            return 0
        shape, _, dtype = readers[version](file)
    if any(size < 0 for size in shape):
        raise ValueError(f"a size in its shape {shape} is negative")
    return prod(shape) * dtype.itemsize if not dtype.hasobject else 0
