"""Samples that cannot be used: all of them are named before training, or left out on request."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from utcompile.errors import UtcError
from utcompile.train.pictures import FAILURES, Source, check_picture, reason_of

_log = logging.getLogger(__name__)
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
    """Raise where samples are bad; where they are to be skipped, and are not all, log how many and which."""
    if not bad:
        return
    shown = [f"{sample.where}: {sample.why}" for sample in bad[:_SHOWN]]
    if len(bad) > _SHOWN:
        shown.append(f"and {len(bad) - _SHOWN} more")
    if skip and len(bad) < total:
        left_out(f"{len(bad)} of {total} samples: {'; '.join(shown)}")
        return
    raise UtcError(
        f"{len(bad)} of {total} samples cannot be used",
        where=bad[0].where,
        why="; ".join(shown),
        fix="mend or remove them" if skip else "mend or remove them, or leave them out with --skip-bad",
        code="data/damaged",
    )


def left_out(what: str) -> None:
    """Log what of the data is not used."""
    _log.warning("left out: %s", what)


T = TypeVar("T")


def unreadable(sources: Sequence[Source]) -> list[Bad]:
    """The images that cannot be decoded, found by decoding each once, JPEGs at a fraction of their size."""
    return looked_at(sources, _wrong_with)


def looked_at(samples: Sequence[T], look: Callable[[T], str | None]) -> list[Bad]:
    """The samples of which `look` says what is wrong; it runs in several threads."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return [Bad(i, str(samples[i]), why) for i, why in enumerate(threads.map(look, samples)) if why]


def _wrong_with(source: Source) -> str | None:
    try:
        check_picture(source)
    except FAILURES as error:
        return reason_of(error)
    return None
