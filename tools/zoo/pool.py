"""Worker processes for the zoo: a crash, a hang or a flood of memory costs one row, not the run."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from threading import Thread
from typing import Any

import psutil

from tools.zoo.rows import Row, Task

Work = Callable[[Task, Callable[[Row], None]], Row]
_POLL = 0.5  # seconds between looks at clocks and memory
_START = 120.0  # seconds that a process may take to start


@dataclass(frozen=True)
class Limits:
    """What a worker may use.

    Attributes:
        seconds: for one model.
        models: after which a worker is replaced.
        worn: bytes after which a worker is replaced once its model is done.
        memory: bytes at which it is killed.
    """

    seconds: float = 300.0
    models: int = 50
    worn: float = 3e9
    memory: float = 10e9


def run_tasks(tasks: Sequence[Task], work: Work, jobs: int, limits: Limits) -> Iterator[Row]:
    """Do the tasks in `jobs` processes; yields a row for each, in the order in which they end.

    Args:
        work: a module-level function. It gets a task, and a function to tell a draft of its row with: the draft is
            what remains where the process is killed. An exception that it raises becomes a failed row.
    """
    left = list(reversed(tasks))
    workers: list[_Worker] = []
    try:
        while left or workers:
            while left and len(workers) < jobs:
                workers.append(_Worker(work))
                workers[-1].give(left.pop())
            wait([w.connection for w in workers], _POLL)
            for worker in list(workers):
                row = worker.look(limits)
                if row is None:
                    continue
                yield row
                if left and worker.is_fit(limits):
                    worker.give(left.pop())
                else:
                    worker.stop()
                    workers.remove(worker)
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """One process with the task that it is at."""

    def __init__(self, work: Work) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process that has used torch may hang
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self.process.start()
        theirs.close()
        self.done = 0

    def give(self, task: Task) -> None:
        # starting the process is not the model's time
        self.task, self.draft, self.started = task, None, time.monotonic() + (0 if self.done else _START)
        self.connection.send(task)

    def look(self, limits: Limits) -> Row | None:
        """The row of its task, if it has ended in whatever way."""
        try:
            while self.connection.poll():
                kind, value = self.connection.recv()
                if kind == "begun":
                    self.started = time.monotonic()
                elif kind == "draft":
                    self.draft = value
                if kind != "row":
                    continue
                self.done += 1
                return value
        except (EOFError, OSError):
            self.process.join(5)
            return self._ended("failed", f"the worker process died with exit code {self.process.exitcode}")
        if time.monotonic() - self.started > limits.seconds:
            return self._ended("timed out", f"it took more than {limits.seconds:.0f} s")
        if self._memory() > limits.memory:
            return self._ended("failed", f"it took more than {limits.memory / 1e9:.3g} GB of memory")
        return None

    def is_fit(self, limits: Limits) -> bool:
        """Whether it can take another model."""
        return self.process.is_alive() and self.done < limits.models and self._memory() < limits.worn

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()

    def _memory(self) -> int:
        try:
            return int(psutil.Process(self.process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def _ended(self, status: str, reason: str) -> Row:
        self.process.kill()
        self.process.join()
        draft = self.draft or Row(self.task.library, self.task.name, status, verify=self.task.verify)
        phase = "while it was captured" if draft.status == "built" else "while it was built"
        seconds = time.monotonic() - self.started
        if draft.status == "built":
            return replace(draft, status=status, reason=f"{reason}, {phase}", capture_seconds=seconds)
        return replace(draft, status=status, reason=f"{reason}, {phase}", build_seconds=seconds)


def _serve(connection: Connection[Any, Any], work: Work) -> None:
    """The loop of a worker process; it ends with its parent, in whatever way that ends."""
    Thread(target=_follow_parent, daemon=True).start()
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return

        connection.send(("begun", None))

        def tell(draft: Row) -> None:
            connection.send(("draft", draft))

        try:
            row = work(task, tell)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            row = Row(task.library, task.name, "failed", verify=task.verify, reason=reason)
        connection.send(("row", row))


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
