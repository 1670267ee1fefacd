"""A result that is a folder appears whole or not at all, and no result takes a run's place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utcompile.errors import UtcError
from utcompile.files import draft, reported, sync_folder

MANIFEST, TENSORS = "manifest.json", "tuners.safetensors"  # of `rewrite`, which needs seconds to import
TOKENIZER = "tokenizer"  # of `train`: the folder of a text run's tokenizer
_ELSEWHERE = "write it to another folder"


def check_apart(out: Path, run: Path) -> None:
    """Raise where a result would be, contain or lie in its run, or replace another run: called before any work."""
    where, source = out.resolve(), run.resolve()
    word = "is" if where == source else "contains" if where in source.parents else "lies in"
    if where == source or where in source.parents or source in where.parents:
        raise UtcError(
            f"the result {word} the run", where=str(out), fix="write it to another folder", code="path/taken"
        )
    for folder in (where, *where.parents):
        if is_run(folder):
            word = "is" if folder == where else "lies in"
            raise UtcError(
                f"the result {word} a run",
                where=str(out),
                why=f"{folder} has a checkpoint",
                fix=_ELSEWHERE,
                code="path/taken",
            )
    inside = (Path(root) for root, _, _ in os.walk(where))
    if (found := next(filter(is_run, inside), None)) is not None:
        raise UtcError(
            "the result would replace a run",
            where=str(out),
            why=f"{found} has a checkpoint",
            fix=_ELSEWHERE,
            code="path/taken",
        )


def is_run(folder: Path) -> bool:
    """Whether a folder has a checkpoint of tuners."""
    return (folder / MANIFEST).is_file() and (folder / TENSORS).is_file()


def check_free(out: Path, *, overwrite: bool, flag: str = "--overwrite") -> None:
    """Raise where a result would replace something: called before any work is done."""
    if out.exists() and not out.is_dir():
        raise UtcError(
            "the result is a folder, and this is a file", where=str(out), fix="give another path", code="path/invalid"
        )
    if out.exists() and not overwrite and any(out.iterdir()):
        raise UtcError(
            "the folder is not empty",
            where=str(out),
            fix=f"give another folder, or {flag} to replace it",
            code="path/taken",
        )


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A fresh folder next to `out`, which replaces it when nothing has failed."""
    out = out.absolute()
    with reported("the folder cannot be written", out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with draft(out.parent) as beside:
            new, old = beside / "new", beside / "old"
            new.mkdir()
            yield new
            if out.exists():
                out.rename(old)
            try:
                new.rename(out)
            except BaseException:
                if old.exists():
                    old.rename(out)
                raise
            sync_folder(out.parent)
