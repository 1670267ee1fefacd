"""What Ctrl-C leaves of a run, and how it is continued."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from utcompile.cli import output
from utcompile.cli.train_data import CODE, is_function

if TYPE_CHECKING:
    from utcompile.cli.models import ModelChoice


@contextmanager
def going_on(out: Path, *, trust: bool = False) -> Iterator[None]:
    """On Ctrl-C says how the run is continued.

    Args:
        trust: whether this runs code that the manifest names.
    """
    try:
        yield
    except KeyboardInterrupt:
        if (out / "last").is_dir():
            output.progress(f"go on with: utcompile train --resume -o {shlex.quote(str(out))}{' --trust' * trust}")
        else:
            output.progress("nothing was saved: the first epoch was not complete")
        raise


def trusting(data: Path, reading: Mapping[str, object], choice: ModelChoice) -> bool:
    """Whether a run with these runs code of the user's when it is continued."""
    return choice.source.runs_code or is_function(data) or any(reading.get(key) for key in CODE)
