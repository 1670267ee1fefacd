"""Where the command line writes: results to stdout, progress and errors to stderr, JSON alone on stdout."""

from __future__ import annotations

import json
import math
import os
import sys

from rich.console import Console
from rich.text import Text

from utcompile.error_codes import UNKNOWN
from utcompile.errors import UtcError

_WIDTH = 140  # of what is no terminal: a table in a log is not cut at 80 columns


def stdout() -> Console:
    """The console for results; made anew, because tests replace `sys.stdout`."""
    return _console(stderr=False)


def stderr() -> Console:
    """The console for progress and errors."""
    return _console(stderr=True)


def as_json(data: object) -> str:
    """A JSON document; nan and infinity, which JSON has not, become null."""
    return json.dumps(_plain(data), indent=2, allow_nan=False) + "\n"


def emit(data: object) -> None:
    """Write one JSON document to stdout."""
    if not leads():
        return
    sys.stdout.write(as_json(data))


def say(text: str, style: str = "") -> None:
    """A result for a person, on stdout, as it is."""
    if leads():
        stdout().print(Text(text, style), soft_wrap=True)


def say_wrapped(text: str, style: str = "") -> None:
    """A result for a person, which a terminal that is too narrow continues at a word; elsewhere as it is."""
    if leads():
        _wrapped(stdout(), Text(text, style))


def _wrapped(console: Console, text: Text, *, soft: bool = False) -> None:
    console.print(text, soft_wrap=soft or not console.is_terminal)


def leads() -> bool:
    """Whether this process reports: the only one, or the first of those that a launcher (`torchrun`) has started."""
    return os.environ.get("RANK", "0") == "0"


def is_alone() -> bool:
    """Whether a launcher has started no other processes."""
    return os.environ.get("WORLD_SIZE", "1") == "1"


def progress(text: str, *, to_copy: bool = False) -> None:
    """Report progress on stderr.

    Args:
        to_copy: a command: no line break is put into it, however narrow the terminal is.
    """
    if leads():
        _wrapped(stderr(), Text(text, "dim"), soft=to_copy)


def fail(error: UtcError) -> None:
    """Print an error's text on stderr, and the code under which the documentation lists it."""
    code = "" if error.code == UNKNOWN else f"\n  code: {error.code}"
    stderr().print(Text.assemble(("error: ", "bold red"), str(error), (code, "dim")), soft_wrap=True)


def _console(*, stderr: bool) -> Console:
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    width = None if terminal or "COLUMNS" in os.environ else _WIDTH
    return Console(stderr=stderr, width=width, highlight=False, markup=False)


def _plain(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
