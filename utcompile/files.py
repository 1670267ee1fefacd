"""Files that appear whole: written in a draft folder, flushed to the disk, then renamed. Every failure is a `UtcError`.

A draft folder has a name that cannot be guessed, and its owner alone may enter it. It is locked as long as its process
lives, so `sweep` recognises the drafts of dead processes and removes them.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from utcompile.errors import UtcError

locks: ModuleType | None
try:
    import fcntl as locks
except ImportError:  # no such locks on Windows
    locks = None

DRAFT = ".utcompile-draft-"
_FIXES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space, or write to another disk"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a folder that you may write to"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "choose a path on which no part is a file"),
    errno.ENAMETOOLONG: "give a shorter name",
}
# where a file system has no locks, files are still written whole; only two writers at once can hinder each other
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF}


def path_of(value: object, what: str) -> Path:
    """A path that a caller gave.

    Raises:
        UtcError: it is no path.
    """
    if not isinstance(value, str | Path) or not str(value):
        raise UtcError(
            f"{what} must be a path, not {value!r:.80}",
            fix='give a str or a pathlib.Path, e.g. "run/"',
            code="arguments/type",
        )
    if "\0" in str(value):
        raise UtcError(
            f"{what} {str(value)!r:.80} contains a NUL character", fix="remove it from the path", code="path/invalid"
        )
    return Path(value)


def check_target(path: Path) -> None:
    """Raise where a file cannot be written: called before any work is done."""
    parent = path.absolute().parent
    if not parent.is_dir():
        raise UtcError(
            "the folder to write to does not exist", where=str(path.parent), fix="create it first", code="path/invalid"
        )
    if path.is_dir():
        raise UtcError(
            "the path to write to is a folder",
            where=str(path),
            fix="name a file in it",
            code="path/invalid",
        )
    check_folder(parent)


def check_folder(folder: Path) -> None:
    """Raise where nothing can be written into a folder, or it is a file."""
    if not folder.is_dir():
        raise UtcError(
            "the folder to write to is a file", where=str(folder), fix="give another folder", code="path/invalid"
        )
    if not os.access(folder, os.W_OK):
        raise UtcError(
            "the folder is not writable",
            where=str(folder),
            fix="choose a folder that you may write to",
            code="path/invalid",
        )


@contextmanager
def reported(what: str, where: str | Path) -> Iterator[None]:
    """An `OSError` inside becomes a `UtcError` with the reason and what to do about it."""
    try:
        yield
    except OSError as error:
        fix = _FIXES.get(error.errno or 0)
        raise UtcError(
            what, where=str(where), why=error.strerror or str(error), fix=fix, code="path/invalid"
        ) from error


def write_new(path: Path, data: bytes) -> None:
    """Write a file that does not exist yet, and flush it to the disk; its permissions are the usual ones."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole, in place of one that may be there; readers see the old or the new one."""
    with draft(path.parent) as folder:
        write_new(folder / path.name, data)
        os.replace(folder / path.name, path)  # noqa: PTH105 - the operations on files are those of `os`, all of them
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Flush the names in a folder to the disk, where the system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def draft(parent: Path) -> Iterator[Path]:
    """A new folder inside `parent` for what is being written; what is left in it at the end is removed."""
    sweep(parent)
    while True:
        path = parent / f"{DRAFT}{secrets.token_hex(8)}"
        os.mkdir(path, 0o700)  # noqa: PTH102
        descriptor = _locked(path, wait=False)
        if descriptor is not None and path.is_dir():
            break
        _close(descriptor)  # swept away between the two calls
    try:
        inside = path / "new"  # a separate folder, which the writer may lock
        os.mkdir(inside)  # noqa: PTH102
        yield inside
    finally:
        try:
            shutil.rmtree(path, ignore_errors=True)
        finally:
            _close(descriptor)


def sweep(parent: Path) -> None:
    """Remove the drafts of dead processes from a folder."""
    if locks is None:
        return
    for path in parent.glob(f"{DRAFT}*"):
        if path.is_symlink() or not path.is_dir():
            continue
        descriptor = _locked(path, wait=False)
        if descriptor is not None:
            try:
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Inside, no other process is in here for the same folder: it waits until this one is through, or dead."""
    descriptor = _locked(folder, wait=True)
    try:
        yield
    finally:
        _close(descriptor)


def _locked(folder: Path, *, wait: bool) -> int | None:
    """A locked descriptor of a folder; None where another process has it, -1 where there are no locks."""
    if locks is None:
        return -1
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW * (not wait))
    except FileNotFoundError:
        if wait:
            raise
        return None
    except OSError:
        if wait:
            return -1
        return None
    if lock(descriptor, wait=wait):
        return descriptor
    os.close(descriptor)
    return None


def lock(descriptor: int, *, wait: bool = False) -> bool:
    """Lock an open file or folder until it is closed or the process dies; False where another process has the lock."""
    if locks is None:
        return True
    try:
        locks.flock(descriptor, locks.LOCK_EX | (0 if wait else locks.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _close(descriptor: int | None) -> None:
    if descriptor is not None and descriptor >= 0:
        os.close(descriptor)
