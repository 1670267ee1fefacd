"""The lock of a run folder: one trainer at a time. The operating system frees it when the process dies."""

from __future__ import annotations

import os
import time
from pathlib import Path

from utcompile.errors import UtcError
from utcompile.files import lock

NAME = ".lock"
_PATIENCE = 1.0  # seconds until a process that has just taken the lock has written its number


class RunLock:
    """A lock on a folder, with the number of the process that has it.

    Args:
        folder: it exists.

    Attributes:
        was_left: whether the lock is that of a process that died.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.descriptor, self.was_left = folder / NAME, -1, False

    @property
    def is_taken(self) -> bool:
        """Whether it is ours."""
        return self.descriptor >= 0

    def take(self) -> None:
        """Take the lock.

        Raises:
            UtcError: another process, or another thread of this one, has it.
        """
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        while True:
            descriptor = os.open(self.path, flags, 0o666)
            if not lock(descriptor):
                owner = _owner(descriptor)
                os.close(descriptor)
                raise UtcError(
                    f"process {owner} is training in this folder",
                    where=str(self.path.parent),
                    fix="wait until it has finished, or give another folder",
                    code="train/run",
                )
            if self._is_file(descriptor):
                break
            os.close(descriptor)  # its last owner removed the file after we opened it
        self.descriptor, self.was_left = descriptor, os.fstat(descriptor).st_size > 0
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())

    def free(self) -> None:
        """Free the lock, if it was taken, and remove its file."""
        if not self.is_taken:
            return
        descriptor, self.descriptor = self.descriptor, -1
        try:
            self.path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)

    def _is_file(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat(follow_symlinks=False))
        except FileNotFoundError:
            return False


def _owner(descriptor: int) -> str:
    """The number of the process that has a lock."""
    until = time.monotonic() + _PATIENCE
    while True:
        found = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
        if found or time.monotonic() > until:
            return found or "unknown"
        time.sleep(0.01)
