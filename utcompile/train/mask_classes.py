"""Which classes the values in masks are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Set
from pathlib import Path

from utcompile.errors import UtcError
from utcompile.train.tasks import IGNORED

CLASSES = "classes.txt"


def names_of(
    seen: Set[int], named: tuple[str, ...], path: Path, *, measured: bool = False
) -> tuple[tuple[str, ...], bool]:
    """The names of the classes, and whether the masks are 0 and 255, for background and object.

    Args:
        seen: the values in all masks.
        named: the names, where they are known.
        measured: the masks are measured and not trained on, so they may lack classes.

    Raises:
        UtcError: there are values without a name, gaps between them, or a single class.
    """
    binary = seen <= {0, IGNORED} and IGNORED in seen and len(named or "01") == 2 and (measured or 0 in seen)
    found = {int(value > 0) for value in seen} if binary else set(seen) - {IGNORED}
    highest = max(found, default=0)
    if named and len(named) <= highest:
        raise UtcError(
            f"a mask has the class {highest}, and {CLASSES} names {len(named)} classes",
            where=str(path),
            fix=f"name the classes 0 to {highest}, one per line",
            code="data/labels",
        )
    names = named or (("background", "object") if binary else tuple(str(i) for i in range(highest + 1)))
    if not measured:
        check_classes(found, len(names), path, named=bool(named))
    return names, binary


def check_classes(found: Set[int], classes: int, path: Path, *, named: bool = False) -> None:
    """Raise where there is one class, or where classes without names leave gaps.

    Args:
        found: the classes of all pixels that count.
        classes: how many there are.
    """
    if classes < 2 or len(found) < 2:
        raise UtcError(
            "all pixels of all masks are of one class",
            where=str(path),
            fix="write the class of each pixel: 0, 1, 2 …; or 0 and 255 for background and object",
            code="data/labels",
        )
    gaps = [str(i) for i in range(classes) if i not in found]
    if gaps and not named:
        raise UtcError(
            f"the masks have the values {_listed(map(str, sorted(found)))}, which leave gaps",
            where=str(path),
            why=f"without a pixel: {_listed(gaps)}",
            fix=f"number the classes from 0 on without gaps, or name all of them in {CLASSES}, one per line",
            code="data/labels",
        )


def _listed(texts: Iterable[str], most: int = 8) -> str:
    every = list(texts)
    return ", ".join(every[:most]) + (" …" if len(every) > most else "")


def read_names(folder: Path) -> tuple[str, ...]:
    """The names in `classes.txt`, one per line; none where there is no such file.

    Raises:
        UtcError: it is no UTF-8, or has a name twice.
    """
    file = folder / CLASSES
    if not file.is_file():
        return ()
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UtcError(
            "the names of the classes cannot be read",
            where=str(file),
            why=str(error),
            fix="save them as UTF-8, one per line",
            code="data/damaged",
        ) from error
    names = tuple(line.strip() for line in lines if line.strip())
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UtcError(f"the class {twice[0]!r} is named twice", where=str(file), code="data/labels")
    return names
