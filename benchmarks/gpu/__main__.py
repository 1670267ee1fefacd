"""Run the checks, append their rows to a file, and print them as a table."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu.known import judged
from benchmarks.gpu.row import Row
from benchmarks.gpu.supervisor import Job, run
from benchmarks.gpu.table import counted, line, page

PLAN = "benchmarks.gpu.plan:checks"


def main() -> int:
    """Parse the command line and run; 1 where a check failed that is not known to, or a known one passed."""
    given = arguments()
    os.environ.setdefault("OMP_NUM_THREADS", "1" if given.quick else "8")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    given.out.mkdir(parents=True, exist_ok=True)
    device = given.device or _device()
    patience = 10.0 if device == "cpu" else 1.0
    job = Job(PLAN, device, given.quick, given.budget, given.only, patience=patience)
    rows = record(job, given.out / "results.jsonl")
    (given.out / "table.md").write_text(page(rows), encoding="utf-8")
    print(f"\n{page(rows)}")
    if alarming := [r for r in rows if r.alarming]:
        print("\n".join(["These rows need attention:", *map(line, alarming)]))
    print(f"{counted(rows)}; {given.out}/results.jsonl, table.md")
    return 1 if alarming or not rows else 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small models and few rounds, also on a CPU")
    parser.add_argument("--budget", type=float, default=400.0, metavar="S", help="seconds for all checks (400)")
    parser.add_argument(
        "--out", type=Path, default=Path("gpu-output"), metavar="DIR", help="for the rows and the table"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), help="by default cuda where there is a GPU")
    parser.add_argument(
        "--only", nargs="+", default=(), metavar="PART", help="only checks whose key contains one of these"
    )
    return parser.parse_args()


def record(job: Job, path: Path) -> list[Row]:
    """Run all checks; each row goes to the file and the terminal at once, so that a run that is cut off keeps them."""
    rows: list[Row] = []
    with path.open("a", encoding="utf-8") as file:
        for found in run(job):
            row = judged(found, job.device)
            rows.append(row)
            file.write(json.dumps(asdict(row), default=str) + "\n")
            file.flush()
            print(line(row), flush=True)
    return rows


def _device() -> str:
    import torch  # only here: the supervisor itself needs no torch

    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    sys.exit(main())
