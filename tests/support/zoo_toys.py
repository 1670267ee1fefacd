"""A job for the zoo's workers that needs no torch: a process that runs it starts in a moment."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace

from tools.zoo.rows import Row, Task


def behave(task: Task, tell: Callable[[Row], None]) -> Row:
    """A worker's job whose name says what goes wrong."""
    row = Row("toys", task.name, "ok", cls="Toy", parameters=3, nodes=5, verify=task.verify)
    tell(replace(row, status="built", nodes=0))
    if task.name == "crashes":
        os._exit(3)
    if task.name == "hangs":
        time.sleep(60)
    if task.name == "raises":
        raise RuntimeError("no luck")
    if task.name == "floods":
        kept = bytearray(800_000_000)
        kept[::4096] = b"x" * len(kept[::4096])
        time.sleep(60)
    return row
