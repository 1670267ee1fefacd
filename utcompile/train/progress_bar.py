"""One progress bar for a whole run; lines appear above it, so that it stays whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text


class Bar:
    """Draws where there is a console; without one, lines are printed as they are."""

    def __init__(self, console: Console, progress: Progress | None, task: TaskID | None) -> None:
        self.console, self.progress, self.task = console, progress, task

    def step(self, text: str) -> None:
        """One more batch is done."""
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, advance=1, description=text)

    def line(self, text: str) -> None:
        """A line that stays; in a terminal that is too narrow, it is continued at a word."""
        self.console.print(Text(text, "dim"), soft_wrap=not self.console.is_terminal)


@contextmanager
def progress_bar(wanted: bool, done: int, total: int) -> Iterator[Bar]:
    """A bar over `total` batches on stderr, where one is wanted and there is a console."""
    console = Console(stderr=True, highlight=False)
    if not wanted or not console.is_terminal:
        yield Bar(console, None, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bar(console, progress, progress.add_task("training", total=total, completed=done))
