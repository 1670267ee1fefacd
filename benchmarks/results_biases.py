"""Why BitFit and SSF predict little but the commonest class of the tweets: few steps, and one rate for head and tuners.

python -m benchmarks.results --part biases        ten runs of 30 steps and six of 100, some six minutes on one core
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import utcompile as utc
from utcompile.cli.compare_methods import Budget, Task
from utcompile.graph import UtcGraphModule
from utcompile.train import fit
from utcompile.train.metrics import measure
from utcompile.train.tasks import make_task

PART = "biases"
METHODS: Mapping[str, Sequence[str]] = {"bitfit/biases": ("bias",), "ssf/all_layers": ("layer", "norm")}
RATES = (3e-4, 1e-3, 3e-3)  # of the tuners
HEAD = 1e-2  # the rate that the linear probe chooses
ONE, EPOCHS = 2e-3, 10  # one rate for head and tuners, and more epochs


def run(out: Path, task: Task, budget: Budget) -> None:
    """Tune both methods with a rate for the tuners alone, the best of three on validation; and with more epochs."""
    path = out / f"{PART}.json"
    if path.exists():
        return
    captured, found = utc.capture(task.build(0), task.example), list[dict[str, object]]()

    def note(method: str, epochs: int, head: float, rate: float, runs: Sequence[Mapping[str, float]]) -> None:
        tested = [one["test"] for one in runs]
        found.append({"method": method, "epochs": epochs, "head": head, "rate": rate, "test": tested})
        print(f"{PART}: {found[-1]}", file=sys.stderr, flush=True)

    for method, rules in METHODS.items():
        first, *others = budget.seeds

        def once(rate: float, seed: int, method: str = method, rules: Sequence[str] = rules) -> dict[str, float]:
            return _run(captured, task, budget, method, seed, HEAD, dict.fromkeys(rules, rate))

        tried = {rate: once(rate, first) for rate in RATES}
        rate = max(tried, key=lambda r: tried[r]["validation"])
        note(method, budget.epochs, HEAD, rate, [tried[rate], *(once(rate, seed) for seed in others)])
        longer = replace(budget, epochs=EPOCHS)
        note(method, EPOCHS, ONE, ONE, [_run(captured, task, longer, method, seed, ONE) for seed in budget.seeds])
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _run(
    captured: UtcGraphModule,
    task: Task,
    budget: Budget,
    method: str,
    seed: int,
    lr: float,
    rates: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """A run as `compare` makes it, but for the rates of the rules."""
    assert task.test is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tuned = utc.match(captured, utc.RuleSet.load(method)).apply()
    head, own = task.build(seed).state_dict(), dict(tuned.named_parameters())
    with torch.no_grad():
        for name in ("head.weight", "head.bias"):
            own[name].copy_(head[name])
    shared: dict[str, Any] = {
        "epochs": budget.epochs,
        "batch_size": budget.batch_size,
        "weight_decay": budget.weight_decay,
        "schedule": budget.schedule,
    }
    with tempfile.TemporaryDirectory() as folder:
        done = fit(
            tuned,
            task.data,
            out=Path(folder) / "run",
            save=partial(utc.save_tuners, tuned),
            load=partial(utc.load_tuners, tuned),
            lr=lr,
            rates=rates,
            seed=seed,
            progress=False,
            **shared,
        )
    goal = make_task(task.data)
    return {"validation": done.best, "test": measure(tuned, DataLoader(task.test, 64), goal)["accuracy"]}


def said(out: Path) -> str:
    """What the page says of these runs; empty before they are done."""
    path = out / f"{PART}.json"
    if not path.is_file():
        return ""
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    lines = [
        "Why `bitfit/biases` and `ssf/all_layers` stay at the commonest class: a run has 30 steps. The thousands of "
        "shifts of every layer first learn what is common to all batches, which is how many tweets are positive. One "
        "rate serves them and the head. Where it is high enough for the head, the shifts move the features too far; "
        "where it is lower, 30 steps are too few for the head. BitFit in plain PyTorch takes the same steps "
        "(`tests/tuners/test_bias_plain.py`). On `film`, with equally common classes, BitFit is where the probe is. "
        "What helps is more steps, or a rate for the tuners alone "
        f"(`utcompile train --lr {HEAD:g} --rate RULE=…`; the best of {rates} on validation):\n"
    ]
    lines += [
        "| method | epochs | rate of the head | rate of the tuners | test accuracy of each seed |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in json.loads(path.read_text(encoding="utf-8")):
        values = ", ".join(f"{100 * value:.1f} %" for value in row["test"])
        lines.append(f"| `{row['method']}` | {row['epochs']} | {row['head']:g} | {row['rate']:g} | {values} |")
    return "\n".join(lines)
