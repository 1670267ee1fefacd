"""`python -m tests.fuzz --programs 1000 --seed 0 --jobs 2`: random models against their captures."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from . import tuning
from .campaign import Tally, minimal, run
from .generate import generate
from .oracle import judge


def main() -> int:
    """Print the table, and each wrong program as a minimal script; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--programs", type=int, default=1000, help="how many seeds")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--scripts", type=int, default=5, help="how many wrong programs to print as minimal scripts")
    parser.add_argument("--out", type=Path, help="a folder for the scripts; printed if left out")
    parser.add_argument("--tuning", action="store_true", help="tune each by random rules: gradients and folds")
    parser.add_argument("--show", action="store_true", help="print the program of --seed, and stop")
    options = parser.parse_args()
    if options.show:
        print(generate(options.seed).script)
        return 0
    torch.set_num_threads(1)
    check = tuning.judge if options.tuning else judge
    tally, begun = Tally(), time.monotonic()
    for i, (seed, outcome) in enumerate(
        run(range(options.seed, options.seed + options.programs), options.jobs, check), 1
    ):
        tally.add(seed, outcome)
        for where, what in outcome.wrong[:1]:
            print(f"WRONG seed {seed}, {where}: {what}", file=sys.stderr, flush=True)
        if i % 100 == 0:
            print(
                f"{i} programs, {len(tally.wrong)} wrong, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True
            )
    print(tally)
    for seed, where, what in tally.wrong[: options.scripts]:
        text = f"# seed {seed}, {where}: {what}\n{minimal(seed, check).script}"
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / f"{seed}.py").write_text(text)
        else:
            print(f"\n{'-' * 100}\n{text}")
    return bool(tally.wrong)


if __name__ == "__main__":
    sys.exit(main())
