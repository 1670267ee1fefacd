"""Latency of several ONNX files, measured pairwise: every round runs each file once, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from utcompile.deploy.call import ExampleInputs, resized
from utcompile.deploy.runtime import as_numpy, check_feeds, feeds_in_order, session
from utcompile.errors import UtcError


@dataclass(frozen=True)
class Latency:
    """How long one run takes.

    Attributes:
        median, lower, upper: median and quartiles in milliseconds.
        ratio: the median over the rounds of this file's time by the first file's time in the same round.
        rounds: how many there were.
    """

    median: float
    lower: float
    upper: float
    ratio: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.3f} ms ({self.lower:.3f} to {self.upper:.3f}), {self.ratio:.3f} of the first"


def in_turns(
    functions: Sequence[Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Time functions pairwise: each round calls every function once, and the order turns from round to round.

    Args:
        rounds: the measured rounds; `warmup` more run before.
        clock: what reads the time in seconds.

    Returns:
        For each function its time in each round, in milliseconds.

    Example:
        >>> [len(times) for times in in_turns([list, dict], rounds=3)]
        [3, 3]
    """
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(-warmup, rounds):
        for step in range(len(functions)):
            index = (step + turn) % len(functions)
            started = clock()
            functions[index]()
            if turn >= 0:
                times[index].append(1e3 * (clock() - started))
    return times


def latency(
    paths: Mapping[str, str | Path],
    example_inputs: ExampleInputs,
    batch_size: int = 1,
    rounds: int = 100,
    *,
    warmup: int = 10,
    threads: int | None = None,
) -> dict[str, Latency]:
    """Measure ONNX files pairwise.

    The clock, the temperature and the neighbours of a machine drift over seconds, so files that are measured one after
    the other are not comparable. Here each round runs every file once, the order turning from round to round, and the
    ratios are taken within a round.

    Args:
        paths: name to file; the first is what the others are compared with.
        example_inputs: a tensor or a tuple (in the order of the files' inputs) or a mapping (by name). Every tensor
            whose dimension 0 equals that of the first is repeated or sliced to `batch_size`.
        rounds: measured; `warmup` more run before.
        threads: threads within an operation. None: one a physical core.

    Raises:
        UtcError: no file, a file that is not ONNX, or inputs that do not fit one.
    """
    if not paths:
        raise UtcError("there is no ONNX file to measure", fix="pass a mapping of names to paths", code="onnx/file")
    if rounds < 1 or batch_size < 1 or warmup < 0:
        raise UtcError(
            f"rounds={rounds}, batch_size={batch_size}, warmup={warmup}",
            fix="rounds and batch_size start at 1",
            code="arguments/value",
        )
    # Idle workers that spin would take cores from the session that is being timed.
    opened = {name: session(path, threads, spin=False) for name, path in paths.items()}
    inputs = resized(example_inputs, batch_size)
    feeds = {}
    for name, one in opened.items():
        tensors = feeds_in_order(one, inputs)
        check_feeds(one, tensors)
        feeds[name] = {key: as_numpy(tensor) for key, tensor in tensors.items()}
    return paired({name: partial(one.run, None, feeds[name]) for name, one in opened.items()}, rounds, warmup)


def paired(candidates: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 3) -> dict[str, Latency]:
    """Time functions in turns; ratios are of the first."""
    times = np.array(in_turns([*candidates.values()], rounds, warmup)).T
    ratios = np.median(times / times[:, :1], axis=0)
    quartiles = np.percentile(times, (25, 50, 75), axis=0)
    return {
        name: Latency(float(median), float(low), float(high), float(ratio), rounds)
        for name, low, median, high, ratio in zip(candidates, *quartiles, ratios, strict=True)
    }
