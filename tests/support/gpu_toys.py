"""Checks that pass, fail, hang, crash or cannot run, for the program that runs the checks of a GPU."""

from __future__ import annotations

import os
import time

from benchmarks.gpu import worker
from benchmarks.gpu.row import Check, Findings, NotRun


def checks(device: str, quick: bool) -> list[Check]:
    """One of each kind; the last one shows that those before it did no harm."""
    return [
        Check("toy", "passes", passes),
        Check("toy", "is beyond its bound", beyond),
        Check("toy", "raises", raises),
        Check("toy", "hangs in Python", hangs, seconds=0.2),
        Check("toy", "hangs and hears nothing", deaf, seconds=0.2),
        Check("toy", "crashes", crashes),
        Check("toy", "cannot run", cannot),
        Check("toy", "needs a package", passes, needs=("no_such_package",)),
        Check("toy", "needs a GPU", passes, cuda=True),
        Check("toy", "breaks its process", breaks),
        Check("toy", "prints and passes", prints),
    ]


def passes(found: Findings) -> None:
    found.note(answer=42)


def beyond(found: Findings) -> None:
    found.at_most("error", 0.5, 0.1)
    found.at_least("share", float("nan"), 0.1)


def raises(found: Findings) -> None:
    found.note(before=1)
    worker.load("")


def hangs(found: Findings) -> None:
    while True:
        time.sleep(0.01)


def deaf(found: Findings) -> None:
    """Like a call outside Python that does not return."""
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            continue


def crashes(found: Findings) -> None:
    os._exit(7)


def cannot(found: Findings) -> None:
    raise NotRun("there is no second machine")


def breaks(found: Findings) -> None:
    """Like an illegal access on a GPU, after which no call succeeds; the next check needs another process."""
    worker.healthy = lambda: False
    found.note(process=os.getpid())


def prints(found: Findings) -> None:
    print("what a library prints")  # noqa: T201
    found.note(process=os.getpid())
