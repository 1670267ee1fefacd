"""Samples that cannot be used: all of them are named before training, or left out on request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from utcompile.errors import UtcError

_SHOWN = 5
_THREADS = 8  # decoding an image lets other threads run


@dataclass(frozen=True)
class Bad:
    """A sample that cannot be used.

    Attributes:
        index: its place in the list of samples.
        where: its file, or its file and line.
        why: the reason.
    """

    index: int
    where: str
    why: str


def refuse(bad: Sequence[Bad], total: int, *, skip: bool) -> None:
    """Raise where samples are bad, unless they are to be skipped; all being bad is always an error."""
    if not bad or (skip and len(bad) < total):
        return
    shown = [f"{sample.where}: {sample.why}" for sample in bad[:_SHOWN]]
    if len(bad) > _SHOWN:
        shown.append(f"and {len(bad) - _SHOWN} more")
    raise UtcError(
        f"{len(bad)} of {total} samples cannot be used",
        where=bad[0].where,
        why="; ".join(shown),
        fix="mend or remove them" if skip else "mend or remove them, or leave them out with --skip-bad",
        code="data/damaged",
    )


def unreadable(paths: Sequence[Path], look: Callable[[Path], str | None] | None = None) -> list[Bad]:
    """The image files that cannot be decoded, found by decoding each once, JPEGs at a fraction of their size.

    Args:
        look: instead of decoding: returns what is wrong with a file, or None.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        reasons: Iterable[str | None] = threads.map(look or _wrong_with, paths)
        return [Bad(i, str(paths[i]), why) for i, why in enumerate(reasons) if why]


def _wrong_with(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            image.draft("RGB", (32, 32))
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return reason_of(error)
    return None


def reason_of(error: BaseException) -> str:
    """The first line of an error's text, or its class where it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
