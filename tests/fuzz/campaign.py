"""Many programs, in several processes, and the table of what came of them."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from .generate import generate
from .oracle import Outcome, judge
from .program import Program
from .shrink import shrink


@dataclass
class Tally:
    """The sum of many outcomes.

    Attributes:
        programs: programs whose model runs on its example; the others are not counted.
        wrong: (seed, where, what) of each wrong program.
    """

    programs: int = 0
    captured: int = 0
    unusable: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[int, str, str]] = field(default_factory=list)

    def add(self, seed: int, outcome: Outcome) -> None:
        if not outcome.runs:
            self.unusable += 1
            return
        self.programs += 1
        self.captured += outcome.captured
        for name in ("equal", "guarded", "refused", "invalid", "unwritten"):
            self.calls[name] += getattr(outcome, name)
        self.calls["wrong"] += len(outcome.wrong)
        self.reasons.update(outcome.reasons)
        self.wrong += [(seed, *found) for found in outcome.wrong[:1]]

    @property
    def rate(self) -> float:
        """The share of the calls that the model itself can run which are equal."""
        runs = sum(n for name, n in self.calls.items() if name not in ("invalid", "unwritten"))
        return self.calls["equal"] / runs if runs else 0.0

    def __str__(self) -> str:
        lines = [
            f"programs   {self.programs} ({self.captured} captured; {self.unusable} more fail on their own example)",
            f"wrong      {len(self.wrong)} programs",
            f"calls      {', '.join(f'{n} {name}' for name, n in self.calls.most_common())}",
            f"equal      {self.rate:.1%} of the calls that the model itself can run",
            "refusals by reason",
        ]
        return "\n".join([*lines, *(f"{n:8} {reason}" for reason, n in self.reasons.most_common(40))])


def run(
    seeds: Iterable[int], jobs: int = 1, check: Callable[[Program], Outcome] = judge
) -> Iterator[tuple[int, Outcome]]:
    """The outcome of each seed, in order."""
    one = partial(_one, check)
    if jobs == 1:
        yield from map(one, seeds)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, initializer=torch.set_num_threads, initargs=(1,), maxtasksperchild=2000) as pool:
        yield from pool.imap(one, seeds, chunksize=8)


def _one(check: Callable[[Program], Outcome], seed: int) -> tuple[int, Outcome]:
    return seed, check(generate(seed))


def minimal(seed: int, check: Callable[[Program], Outcome] = judge) -> Program:
    """The smallest program that fails as the program of a seed does."""
    program = generate(seed)
    (where, what), *_ = check(program).wrong
    calls = (
        tuple(s for s in program.calls if any(c.label == where for c in s))
        if where not in ("capture", "tuning")
        else ()
    )
    sign = _sign(what)

    def fails(smaller: Program) -> bool:
        return any(_sign(found) == sign for _, found in check(smaller).wrong)

    first = replace(program, calls=calls)
    return shrink(first if fails(first) else program, fails)


def _sign(what: str) -> str:
    """How something is wrong, coarsely: a traceback's class, else that another value or shape came out."""
    return what.split(":")[0] if what.startswith(("traceback", "changed")) else "output"
