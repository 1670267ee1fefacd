"""Runs the checks in a child process within a budget of seconds; a child that crashes or hangs is replaced."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.row import Row
from benchmarks.gpu.worker import work

_START = 120.0  # seconds in which a child must have listed its checks
_GRACE = 20.0  # seconds beyond a check's bound, after which the child is killed


@dataclass(frozen=True)
class Job:
    """What to run.

    Attributes:
        plan: `module:function`, which gives the checks.
        device: `cuda` or `cpu`.
        quick: small sizes.
        budget: seconds for all checks.
        only: parts of keys; a check runs if its key contains one of them. Empty: all checks.
        grace: seconds beyond a check's bound, after which the child is killed.
        patience: a factor for the bounds of all checks: a CPU that others use too is slow.
    """

    plan: str
    device: str
    quick: bool
    budget: float
    only: Sequence[str] = ()
    grace: float = _GRACE
    patience: float = 1.0


class Child:
    """A process that runs checks."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, job.plan, job.device, job.quick))
        self.process.start()
        theirs.close()
        self.checks: list[tuple[str, float]] = self._receive(_START)
        self.healthy = True

    def run(self, number: int, limit: float, grace: float) -> Row:
        """Run a check.

        Raises:
            EOFError: the child died, or had to be killed.
        """
        self.connection.send((number, limit))
        row: Row
        row, self.healthy = self._receive(limit + grace)
        return row

    def _receive(self, seconds: float) -> Any:
        if not self.connection.poll(seconds):
            self.stop()
            raise EOFError(f"killed after {seconds:.0f} s")
        try:
            return self.connection.recv()
        except EOFError:
            self.process.join(5)
            raise EOFError(f"the process ended with code {self.process.exitcode}") from None

    def stop(self) -> None:
        """End the process at once."""
        self.process.kill()
        self.process.join()

    def leave(self) -> None:
        """Let the process end by itself, or end it where it does not."""
        with suppress(OSError):
            self.connection.send(None)
        self.process.join(5)
        self.stop()


def run(job: Job, clock: Callable[[], float] = time.monotonic) -> Iterator[Row]:
    """One row per check, as it ends; rows `not run` for those that the budget does not reach."""
    ends = clock() + job.budget
    listing = Child(job)
    child: Child | None = listing
    try:
        for number, (key, bound) in enumerate(listing.checks):
            if job.only and not any(part in key for part in job.only):
                continue
            if (left := ends - clock()) < min(bound, 5.0):
                yield Row(key, "not run", why="no time left")
                continue
            started = clock()
            try:
                child = child if child and child.healthy else _another(child, job)
                yield child.run(number, min(bound * job.patience, left), job.grace)
            except (EOFError, OSError) as end:
                child = None
                yield Row(key, "failed", round(clock() - started, 1), problems=(f"crashed: {end}",))
    finally:
        if child is not None:
            child.leave()


def _another(child: Child | None, job: Job) -> Child:
    if child is not None:
        child.stop()
    return Child(job)
