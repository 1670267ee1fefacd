"""The time of steps that do the same work in several ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter

import torch

ROUNDS = 7
_LEAST = 0.002  # seconds of a sample: a shorter step is repeated


def least_seconds(
    steps: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int = ROUNDS,
    clock: Callable[[], float] = perf_counter,
) -> dict[str, float]:
    """The least seconds of each step over rounds, in which the steps take turns.

    The least and not the median: what else runs on the machine can only lengthen a step.

    Args:
        steps: by name.
        device: on which they run.
        rounds: after two that are not counted.
        clock: yields seconds.

    Example:
        >>> now = iter(range(100))
        >>> least_seconds({"a": int, "b": int}, torch.device("cpu"), rounds=3, clock=lambda: float(next(now)))
        {'a': 1.0, 'b': 1.0}
    """

    def seconds(step: Callable[[], object], repeats: int) -> float:
        start = clock()
        for _ in range(repeats):
            step()
        _wait(device)
        return (clock() - start) / repeats

    for step in steps.values():
        step()
    _wait(device)
    slowest = max(seconds(step, 1) for step in steps.values())
    repeats = max(1, min(int(_LEAST / max(slowest, 1e-6)), 100))
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            found[name].append(seconds(step, repeats))
    return {name: min(values) for name, values in found.items()}


def _wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)
