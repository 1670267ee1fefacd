"""What a run writes while it trains, reported as it comes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from utcompile.cli import output

HISTORY = "history.jsonl"


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        output.progress(record.getMessage())


@contextmanager
def log_lines(name: str) -> Iterator[None]:
    """Say what a module logs on stderr."""
    logger, lines = logging.getLogger(name), _Lines()
    level = logger.level
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(lines)
        logger.setLevel(level)


@contextmanager
def epoch_lines(run: Path, epochs: int) -> Iterator[None]:
    """Say each new line of a run's history on stderr."""
    path, ended = run / HISTORY, Event()
    seen = len(_lines(path))

    def follow() -> None:
        shown = seen
        while True:
            last_look = ended.wait(0.2)
            lines = _lines(path)
            for line in lines[shown:]:
                output.progress(_told(line, epochs))
            shown = max(shown, len(lines))
            if last_look:
                return

    thread = Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return []
    return text[: text.rfind("\n") + 1].splitlines()


def _told(line: str, epochs: int) -> str:
    entry = json.loads(line)
    return (
        f"epoch {entry['epoch']}/{epochs}: loss {entry['train_loss']:.4f}, "
        f"validation loss {entry['validation_loss']:.4f}, accuracy {entry['validation_accuracy']:.2%}, "
        f"{entry['seconds']:.1f} s"
    )
