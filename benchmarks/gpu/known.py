"""Failures of today that are known, each with its reason.

A failure leaves this list when it is mended: a listed check that passes fails the run, so the list stays true.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from benchmarks.gpu.row import Row


@dataclass(frozen=True)
class Known:
    """A failure that is known.

    Attributes:
        checks: the keys of the checks that fail, as a glob.
        sign: a regular expression that every problem of the row must contain, so that no other failure hides here.
        why: the reason.
        on: the types of the devices where it fails.
    """

    checks: str
    sign: str
    why: str
    on: tuple[str, ...] = ("cpu", "cuda")


KNOWN = (
    *(
        Known(
            f"capture: {name}",
            "device_constants is",
            "the samples' other device is always cuda:0, so for a model on cuda:0 its device counts as a constant",
            ("cuda",),
        )
        for name in ("bert", "llama")
    ),
    Known(
        "programs: resnet, ssf/all_layers, channels last: kept bytes",
        "of the contiguous one's is",
        "a weight is reshaped to be scaled, which copies one in channels last, and the copy is kept for backward",
    ),
)


def judged(row: Row, device: str, known: Iterable[Known] = KNOWN) -> Row:
    """The row with its failure compared with the known ones; `device` is a device's type."""
    listed = next((k for k in known if device in k.on and fnmatchcase(row.key, k.checks)), None)
    if listed is None or row.status not in ("ok", "failed"):
        return row
    if row.status == "ok":
        return replace(row, status="mended", why=f"known.py lists it as failing: {listed.why}")
    if all(re.search(listed.sign, problem) for problem in row.problems):
        return replace(row, status="known", why=listed.why)
    return row
