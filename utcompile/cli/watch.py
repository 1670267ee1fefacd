"""What a module logs while a run trains, reported as it comes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from utcompile.cli import output


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
