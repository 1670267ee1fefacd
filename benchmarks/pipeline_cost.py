"""The CPU time of each step of the pipeline, next to another checkout's; nodes and checkpoints must be the same.

`python -m benchmarks.pipeline_cost --against CHECKOUT [--rounds N] [--only PAIR …]`

Each checkout has a process of its own, and they take turns. The first pass is not counted. A ratio is the median over
rounds of two times of one round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.checkouts import HERE, Worker
from benchmarks.pipeline_steps import PAIRS, STEPS


def main() -> int:
    """Print a table; 1 if nodes or checkpoints differ, or a pass failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline_cost", description=__doc__)
    parser.add_argument("--against", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=list(PAIRS), metavar="PAIR")
    options = parser.parse_args()
    workers = [Worker(folder, "pipeline_steps.py") for folder in (HERE, options.against.resolve())]
    print(f"| pair | {' | '.join(STEPS)} | nodes | checkpoint |\n{'|---' * (len(STEPS) + 3)}|")
    all_same, ratios = True, {step: [] for step in STEPS}
    for pair in options.only:
        passes = [_ask(workers, pair, turn) for turn in range(options.rounds + 1)]
        if any("error" in one for both in passes for one in both):
            print(f"| {pair} | {next(one['error'] for both in passes for one in both if 'error' in one)} |")
            all_same = False
            continue
        cells = []
        for step in STEPS:
            times = [[one["seconds"][step] for one in both] for both in passes[1:]]
            ratio = statistics.median(ours / theirs for ours, theirs in times)
            ratios[step].append(ratio)
            cells.append(f"{1e3 * statistics.median(t[0] for t in times):.0f} ms {ratio:.2f}")
        same = [passes[0][0][k] == passes[0][1][k] for k in ("nodes", "checkpoint")]
        all_same &= all(same)
        print(f"| {pair} | {' | '.join(cells)} | {' | '.join('same' if s else 'DIFFER' for s in same)} |", flush=True)
    totals = [f"{statistics.median(r):.2f} (worst {max(r):.2f})" for r in ratios.values() if r]
    print(f"| median | {' | '.join(totals)} | | |")
    for worker in workers:
        worker.close()
    return 0 if all_same else 1


def _ask(workers: list[Worker], pair: str, turn: int) -> list[dict[str, Any]]:
    """One pass in each checkout, ours first in the result; who begins alternates."""
    found: list[dict[str, Any]] = [{}, {}]
    for at in (0, 1) if turn % 2 else (1, 0):
        found[at] = workers[at].ask(pair)
    return found


if __name__ == "__main__":
    sys.exit(main())
