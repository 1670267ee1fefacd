"""Run the benchmarks and print a table as Markdown."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.measure import Row

NAMES = (
    "capturing",
    "matching",
    "forwarding",
    "folding",
    "training",
    "memory",
    "compiled_memory",
    "step_cpu",
    "prefix_cache",
    "onnx_latency",
    "onnx_tasks",
)


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(NAMES)}; all by default")
    parser.add_argument("--quick", action="store_true", help="few rounds of few models: does it run at all?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here too")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch; one a core by default")
    given = parser.parse_args()
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if given.threads:
        torch.set_num_threads(given.threads)
    print(machine() + "\n")
    rows: list[Row] = []
    print("| benchmark | what | median | quartiles | of the first | rounds | |\n|---|---|--:|--:|--:|--:|---|")
    for name in given.names or NAMES:
        torch.manual_seed(0)
        for row in importlib.import_module(f"benchmarks.{name}").run(given.quick):
            rows.append(row)
            print(line(row), flush=True)
    if given.json:
        given.json.write_text(json.dumps([asdict(r) for r in rows], indent=2) + "\n", encoding="utf-8")


def machine() -> str:
    """What the figures depend on, in a line."""
    return (
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, "
        f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads"
    )


def line(row: Row) -> str:
    """One row of the table."""
    digits = 0 if row.median >= 100 else 1 if row.median >= 10 else 2
    median, low, high = (f"{v:,.{digits}f}" for v in (row.median, row.lower, row.upper))
    ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
    return f"| {row.benchmark} | {row.what} | {median} ms | {low} to {high} | {ratio} | {row.rounds} | {row.note} |"


if __name__ == "__main__":
    main()
