"""What Ctrl-C leaves of a run, and how it is continued."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from utcompile.cli import output
from utcompile.cli.early_runs import CODE
from utcompile.cli.train_data import is_function

if TYPE_CHECKING:
    from utcompile.cli.models import ModelChoice


NOT_KEPT = {"data": None, "model": None, "cache": "4GB", "workers": 0}  # with their defaults


@contextmanager
def going_on(out: Path, given: Mapping[str, object], *, trust: bool = False) -> Iterator[None]:
    """On Ctrl-C says how the run is continued.

    Args:
        given: options that the run does not keep, and that it is continued with: of `NOT_KEPT`.
        trust: whether this runs code that the manifest names.
    """
    try:
        yield
    except KeyboardInterrupt:
        if (out / "last").is_dir():
            options = [
                f" --{name} {shlex.quote(str(given[name]))}"
                for name, usual in NOT_KEPT.items()
                if given.get(name, usual) != usual
            ]
            more = "".join(options) + " --trust" * trust
            output.progress(f"go on with: utcompile train --resume -o {shlex.quote(str(out))}{more}", to_copy=True)
        else:
            output.progress("nothing was saved: the first epoch was not complete")
        raise


def trusting(data: Path, reading: Mapping[str, object], choice: ModelChoice) -> bool:
    """Whether a run with these runs code of the user's when it is continued."""
    return choice.source.runs_code or is_function(data) or any(reading.get(key) for key in CODE)
