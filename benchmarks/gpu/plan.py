"""All checks, the most valuable first: a run that is cut off has these."""

from __future__ import annotations

from benchmarks.gpu.groups import (
    attention,
    autocasts,
    captures,
    folds,
    gradients,
    machine,
    processes,
    programs,
    recurrent,
    runtime,
    speed,
    switches,
)
from benchmarks.gpu.row import Check

_ORDER = (
    machine.checks,
    captures.checks,
    folds.checks,
    recurrent.checks,
    autocasts.checks,
    switches.checks,
    speed.checks,
    attention.checks,
    gradients.checks,
    programs.checks,
    runtime.checks,
    speed.more,
    gradients.more,
    processes.checks,
)


def checks(device: str, quick: bool) -> list[Check]:
    """The checks for a device, in order."""
    return [check for group in _ORDER for check in group(device, quick)]
