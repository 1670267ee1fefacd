"""The CPU time of `utc.capture` over sixteen models, next to another checkout's, and what a check costs in a call.

`python -m benchmarks.capture_cost [--against CHECKOUT] [--rounds N] [--only MODEL …] [--verify WHAT …] [--checks]`

Each checkout has a process of its own, and they take turns: every round captures once in each. The first capture of a
model is called first; the others are warm (torch has computed the sizes of its operations). A ratio is the median over
rounds of two times of one round. CPU time is what a process used, so other processes disturb it less than the clock.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

import utcompile as utc
from benchmarks.capture_models import MODELS
from benchmarks.checkouts import HERE, Worker
from benchmarks.measure import paired
from utcompile.graph import info


def seconds_of(worker: Worker, model: str, verify: str) -> float:
    """The CPU seconds of a capture; not a number where it was refused."""
    answer = worker.ask(f"{model} {verify}")
    return float("nan") if "error" in answer else float(answer["seconds"])


@dataclass
class Times:
    """The seconds of a model's captures: one list per checkout, ours first."""

    model: str
    verify: str
    seconds: list[list[float]] = field(default_factory=list)

    def line(self) -> str:
        """A row of the table."""
        warm = [times[1:] or times for times in self.seconds]
        cells = [f"{statistics.median(times):.3f} s | {min(times):.3f} s" for times in warm]
        if len(warm) > 1:
            cells += [f"{ratio(warm):.2f}", f"{self.seconds[0][0] / self.seconds[1][0]:.2f}"]
        return f"| {self.model} | {self.verify} | {' | '.join(cells)} |"


def ratio(seconds: list[list[float]]) -> float:
    """The median over rounds of ours to the other's."""
    return statistics.median(a / b for a, b in zip(*seconds, strict=True))


def measure(checkouts: list[Path], models: list[str], verify: list[str], rounds: int) -> list[Times]:
    """Capture every model in turns, and print a table as it comes."""
    workers = [Worker(checkout, "capture_models.py") for checkout in checkouts]
    names = ["median | least", "other's median | least", "ratio | first"][: 3 if len(workers) > 1 else 1]
    print(f"| model | verify | {' | '.join(names)} |")
    print("|---" * (2 + 2 * len(names)) + "|")
    found = []
    for model in models:
        for what in verify:
            times = Times(model, what, [[] for _ in workers])
            for turn in range(rounds + 1):
                for i in range(len(workers)):
                    at = (i + turn) % len(workers)
                    times.seconds[at].append(seconds_of(workers[at], model, what))
            found.append(times)
            print(times.line(), flush=True)
    for worker in workers:
        worker.close()
    for what in verify:
        same = [t for t in found if t.verify == what]
        totals = [sum(min(t.seconds[i][1:] or t.seconds[i]) for t in same) for i in range(len(workers))]
        firsts = [sum(t.seconds[i][0] for t in same) for i in range(len(workers))]
        text = f"{what}: least times in total {totals[0]:.2f} s, first captures {firsts[0]:.2f} s"
        if len(workers) > 1:
            ratios = [ratio([s[1:] or s for s in t.seconds]) for t in same]
            text += f"; of the other's {totals[0] / totals[1]:.2f} and {firsts[0] / firsts[1]:.2f}"
            text += f"; median ratio {statistics.median(ratios):.2f}, worst {max(ratios):.2f}"
        print(f"\n{text}")
    return found


class Chosen(nn.Module):
    """A model whose Python decides by its sizes, so that a graph of it has guards."""

    def __init__(self, decisions: int) -> None:
        super().__init__()
        self.decisions, self.linear = decisions, nn.Linear(8, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Choose by thresholds that none of the recorded lengths passes."""
        x = self.linear(ids.float()[:, :1].expand(-1, 8))
        for i in range(self.decisions):
            if ids.shape[1] // (2 + i) > 1000:
                x = x * 2
        return x


def checks(rounds: int, decisions: int = 8) -> str:
    """What a guard on sizes costs in a call: a graph with guards next to the same graph without its checks."""
    guarded = utc.capture(Chosen(decisions).eval(), torch.ones(2, 12, dtype=torch.int64))
    bare = copy.deepcopy(guarded)
    nodes = [n for n in bare.graph.nodes if info(n).check]
    for node in reversed(bare.graph.nodes):
        if node in nodes or (not node.users and info(node).derived):
            bare.graph.erase_node(node)
    bare.recompile()
    x = torch.ones(3, 9, dtype=torch.int64)
    calls = 200

    def run(model: nn.Module) -> None:
        with torch.no_grad():
            for _ in range(calls):
                model(x)

    rows = paired("checks", {"bare": lambda: run(bare), "guarded": lambda: run(guarded)}, rounds)
    per_call = 1e3 * (rows["guarded"].median - rows["bare"].median) / calls
    count = len(guarded.guards)
    return f"{count} guards, {len(nodes)} checks: {per_call:.2f} µs per call, {per_call / count:.2f} µs per guard"


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capture_cost", description=__doc__)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout, to capture in turns with")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="warm captures of each model")
    parser.add_argument("--only", nargs="+", choices=MODELS, metavar="MODEL", help=f"some of: {', '.join(MODELS)}")
    parser.add_argument("--verify", nargs="+", choices=["shapes", "values"], default=["shapes", "values"])
    parser.add_argument("--checks", action="store_true", help="only the cost of checks in a call")
    given = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    if not given.checks:
        checkouts = [HERE, *([given.against.resolve()] if given.against else [])]
        measure(checkouts, given.only or list(MODELS), given.verify, given.rounds)
    print(f"\n{checks(50)}; {time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
