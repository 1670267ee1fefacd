"""A result that is a folder appears whole or not at all: written beside, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utcompile.errors import UtcError


def check_free(out: Path, *, overwrite: bool, flag: str = "--overwrite") -> None:
    """Raise where a result would replace something: called before any work is done."""
    if out.exists() and not out.is_dir():
        raise UtcError("the result is a folder, and this is a file", where=str(out), fix="give another path")
    if out.exists() and not overwrite and any(out.iterdir()):
        raise UtcError("the folder is not empty", where=str(out), fix=f"give another folder, or {flag} to replace it")


def check_file(out: Path) -> None:
    """Raise where a file cannot be written: called before any work is done."""
    if not out.absolute().parent.is_dir():
        raise UtcError("the folder to write to does not exist", where=str(out.parent), fix="create it first")
    if out.is_dir():
        raise UtcError("the path to write to is a folder", where=str(out), fix=f"name a file: {out / 'model.onnx'}")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A fresh folder beside `out`, which replaces it when nothing has failed."""
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    draft, old = (out.with_name(f".{out.name}.{word}.{os.getpid()}") for word in ("new", "old"))
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        if out.exists():
            out.rename(old)
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(old, ignore_errors=True)
