"""The child process: it runs one check at a time, when it is told to, and survives what Python can survive."""

from __future__ import annotations

import gc
import importlib
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.gpu.row import Check, Findings, NotRun, Row


class OutOfTime(Exception):
    """A check took longer than it may."""


def work(connection: Connection, plan: str, device: str, quick: bool) -> None:
    """Send the keys and bounds of all checks; then run those whose numbers come, until None does.

    What is sent after a check is its row, and whether this process is still good for another one.

    Args:
        plan: `module:function`, which gives the checks for a device and a size.
    """
    warnings.filterwarnings("ignore")
    with redirect_stdout(sys.stderr):
        checks = load(plan)(device, quick)
        connection.send([(check.key, check.seconds) for check in checks])
        while (asked := connection.recv()) is not None:
            number, limit = asked
            connection.send((perform(checks[number], limit, device), healthy()))


def load(plan: str) -> Callable[[str, bool], Sequence[Check]]:
    """The function that `module:function` names."""
    module, _, function = plan.partition(":")
    loaded: Callable[[str, bool], Sequence[Check]] = getattr(importlib.import_module(module), function)
    return loaded


def perform(check: Check, limit: float, device: str) -> Row:
    """Run a check for at most so many seconds."""
    found, started = Findings(), time.perf_counter()
    try:
        for package in check.needs:
            if find_spec(package) is None:
                raise NotRun(f"{package} is not installed")
        if check.cuda and device != "cuda":
            raise NotRun("it needs a GPU")
        with bounded(limit):
            check.run(found)
    except NotRun as reason:
        return Row(check.key, "not run", why=str(reason), figures=found.figures)
    except OutOfTime:
        found.problems.append(f"stopped after {limit:.0f} s")
    except Exception as error:  # whatever a check raises is what it found
        found.problems.append(told(error))
    gc.collect()
    seconds = round(time.perf_counter() - started, 1)
    return Row(check.key, "failed" if found.problems else "ok", seconds, found.figures, tuple(found.problems))


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` inside the block after so many seconds; what hangs outside Python, the supervisor ends."""

    def stop(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def told(error: Exception) -> str:
    """An exception in a line, with the last places of utcompile or of a check that it passed."""
    paths = [(Path(f.filename), f.lineno) for f in traceback.extract_tb(error.__traceback__)[1:]]
    ours = [p for p in paths if "site-packages" not in p[0].parts and {"utcompile", "benchmarks"} & {*p[0].parts[-4:]}]
    places = [f"{'/'.join(path.parts[-2:])}:{line}" for path, line in ours[-2:]]
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text} ({', '.join(places)})"


def healthy() -> bool:
    """Whether the GPU still answers: an illegal access makes all later calls of the process fail."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True
