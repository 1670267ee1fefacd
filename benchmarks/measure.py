"""Timing for machines that are shared: pairwise rounds, medians and quartiles.

The clock, the temperature and the neighbours of a machine drift over seconds, so things measured one after the other
are not comparable. Here every round runs each candidate once, the order turns from round to round, and a ratio is the
median over rounds of two times taken in the same round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from utcompile.deploy.timing import in_turns


@dataclass(frozen=True)
class Row:
    """One measured quantity.

    Attributes:
        benchmark: which benchmark it belongs to.
        what: what was measured.
        median, lower, upper: median and quartiles in milliseconds.
        rounds: how many times it ran.
        ratio: the median ratio to the benchmark's reference; None where there is no reference.
        note: figures that are not times, such as a number of sites.
    """

    benchmark: str
    what: str
    median: float
    lower: float
    upper: float
    rounds: int
    ratio: float | None = None
    note: str = ""


def paired(
    benchmark: str,
    candidates: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Row]:
    """Time several functions in turns; the first is the reference of the ratios."""
    names = list(candidates)
    times = dict(zip(names, in_turns([*candidates.values()], rounds, warmup, clock), strict=True))
    reference = times[names[0]]
    rows = {}
    for name in names:
        ratios = [mine / first for mine, first in zip(times[name], reference, strict=True)]
        ratio = statistics.median(ratios) if len(names) > 1 else None
        rows[name] = _row(benchmark, name, times[name], ratio)
    return rows


def repeated(
    benchmark: str,
    what: str,
    function: Callable[[], object],
    rounds: int,
    note: str = "",
    clock: Callable[[], float] = time.perf_counter,
) -> Row:
    """Time one function; the first run counts too, for that is the run a user waits for.

    Args:
        benchmark, what, note: of the row.
        function: what is timed.
        rounds: how many times.
        clock: what reads the time in seconds; `time.thread_time` leaves out what neighbours take of the machine.
    """
    times = []
    for _ in range(rounds):
        started = clock()
        function()
        times.append(1e3 * (clock() - started))
    return _row(benchmark, what, times, None, note)


def _row(benchmark: str, what: str, times: list[float], ratio: float | None, note: str = "") -> Row:
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
    if len(times) > 1:
        low, high = max(low, min(times)), min(high, max(times))
    return Row(benchmark, what, middle, low, high, len(times), ratio, note)
