"""The page of a run: its folder is opened, folded, measured, and what it predicts is looked at."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import utcompile as utc
from utcompile.cli import output
from utcompile.cli.drawings import write_page
from utcompile.cli.runs import Run, open_run
from utcompile.deploy.timing import in_turns
from utcompile.errors import UtcError
from utcompile.folding import FoldReport
from utcompile.report import Predictions, RunFacts, Speed, look, read_history, run_page
from utcompile.rewrite import TENSORS
from utcompile.train import load_data

REPORT = "report.html"
_SECONDS = 4.0  # for each model, of measuring its latency


def write_report(
    folder: Path,
    out: Path | None = None,
    *,
    model: str | None = None,
    weights: Path | None = None,
    trust: bool = False,
    data: Path | None = None,
    fold: bool = True,
    measured: Sequence[Speed] = (),
    engine: str = "",
) -> dict[str, Any]:
    """Write the page of a run; returns what it says as plain data.

    Args:
        folder: the run.
        out: the page; `report.html` in the run by default.
        data: where the data are, if not where the manifest says.
        fold: fold the tuners and measure latency, which takes a while for large models.
        measured: latencies that are known already, with what measured them.

    Raises:
        UtcError: no run, no history, or a page that cannot be written. What else fails becomes a note on the page.
    """
    history = read_history(folder)
    opened, notes = open_run(folder, model, weights, trust), list[str]()
    output.progress(f"looking at {folder}")
    predictions = _noted(notes, "Predictions are left out", lambda: _predictions(opened, data, folder))
    folding: FoldReport | str = ""
    if fold:
        found = _noted(notes, "The folding report is left out", lambda: utc.fold(opened.tuned, check_inputs=None))
        folding = "The tuners could not be folded: see the note in the summary."
        if found is not None:
            folded, folding = found
            if not measured:
                models = {"base": opened.choice.build(), "tuned": opened.tuned, "folded": folded}
                measured, engine = _speeds(models, opened.example), _engine()
    _, every = opened.tuned.trainable_parameters()
    facts = RunFacts(
        f"Run {folder.resolve().name}",
        _summary(opened, history),
        history,
        opened.plan,
        every,
        _size(folder / TENSORS),
        predictions,
        measured,
        engine,
        folding,
        notes,
    )
    page = folder / REPORT if out is None else out
    write_page(page, run_page(facts))
    return {
        "page": str(page),
        "epochs": len(history),
        "accuracy": None if predictions is None else predictions.accuracy,
        "latency_ms": {s.name: s.median for s in measured},
        "fold": folding.to_dict() if isinstance(folding, FoldReport) else None,
        "notes": notes,
    }


def _noted(notes: list[str], what: str, make: Any) -> Any:
    """What a function returns; where it fails, None and a note."""
    try:
        return make()
    except UtcError as error:
        notes.append(f"{what}: {error.brief()}{f' - {error.why}' if error.why else ''}")
        return None


def _predictions(opened: Run, path: Path | None, folder: Path) -> Predictions | None:
    manifest = opened.manifest
    recorded, training = manifest.get("data"), manifest.get("training")
    if path is None and not isinstance(recorded, str):
        raise UtcError(
            "the manifest does not say where the data are",
            where=str(folder),
            fix="name them with -d",
            code="checkpoint/damaged",
        )
    preset = opened.choice.preset()
    seed = training.get("seed", 0) if isinstance(training, Mapping) else 0
    data = load_data(path or Path(str(recorded)), **asdict(preset), seed=int(seed))
    if getattr(data, "task", "classify") not in ("classify", "text"):
        return None
    names = [str(name) for name in data.class_names]
    collate = getattr(data, "collate", None)
    return look(opened.tuned, data.validation, names, mean=preset.mean, std=preset.std, collate=collate)


def _summary(opened: Run, history: Sequence[Mapping[str, float]]) -> dict[str, str]:
    keys = [k for k in history[-1] if k.startswith("validation_") and k != "validation_loss"]
    key = keys[0] if keys else "validation_loss"
    lower = key == "validation_loss" or "error" in key
    best = (min if lower else max)(history, key=lambda e: e.get(key, float("inf") if lower else float("-inf")))
    value = best.get(key, float("nan"))
    shown = f"{value:.2%}" if "accuracy" in key else f"{value:.4g}"
    name = key.removeprefix("validation_").replace("_", " ")
    return {
        "model": opened.choice.spec,
        "rules": opened.plan.ruleset.name,
        "data": str(opened.manifest.get("data", "?")),
        f"best {name}": f"{shown} in epoch {int(best['epoch'])} of {len(history)}",
        "sites": f"{len(opened.plan.sites)}",
        "trained parameters": f"{opened.plan.parameters:,}",
        "training time": f"{sum(e.get('seconds', 0) for e in history):,.0f} s",
        "utcompile": str(opened.manifest.get("versions", {}).get("utcompile", "")) or "?",
    }


def _speeds(models: Mapping[str, nn.Module], example: Any) -> list[Speed]:
    """Latencies in PyTorch, each round running every model once."""
    one = {k: v[:1] for k, v in example.items()} if isinstance(example, Mapping) else tuple(v[:1] for v in example)
    calls = []
    for model in models.values():
        model.eval()
        calls.append(partial(model, **one) if isinstance(one, Mapping) else partial(model, *one))
    with torch.no_grad():
        started = time.perf_counter()
        for call in calls:
            call()
        rounds = max(3, min(50, round(_SECONDS * len(calls) / (time.perf_counter() - started))))
        times = torch.tensor(in_turns(calls, rounds), dtype=torch.float64)
    quartiles = times.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=1)
    ratios = (times / times[:1]).median(dim=1).values
    return [
        Speed(name, float(quartiles[1, i]), float(quartiles[0, i]), float(quartiles[2, i]), float(ratios[i]))
        for i, name in enumerate(models)
    ]


def _engine() -> str:
    threads = torch.get_num_threads()
    return (
        f"PyTorch {torch.__version__}, one sample, on a CPU with {threads} {'thread' if threads == 1 else 'threads'}, "
        "the models in turns. ONNX Runtime is faster, and what is shipped: export the run, and measure it there."
    )


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
