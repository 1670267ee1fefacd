"""The page of a run: its folder is opened, folded, measured, and what it predicts is looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from torch import nn

import utcompile as utc
from utcompile.cli import output
from utcompile.cli.drawings import write_page
from utcompile.cli.evaluate import run_task
from utcompile.cli.runs import Run, open_run
from utcompile.cli.speeds import torch_engine, torch_speeds
from utcompile.cli.train_data import READING, read_data, task_of
from utcompile.cli.train_texts import fitted
from utcompile.errors import UtcError
from utcompile.folding import FoldReport
from utcompile.plain_data import JsonObject
from utcompile.plan_of_parts import PartsPlan
from utcompile.report import Predictions, RunFacts, Speed, look, read_history, run_page
from utcompile.rewrite import TENSORS, trainable_parameters
from utcompile.train.held_out import check_held_out, seed_of_split
from utcompile.train.renumbered import Renumbered, with_classes
from utcompile.train.result import best_of
from utcompile.train.task_file import TASK_FILE, read_task_file

REPORT = "report.html"
_MOST = 2e8  # parameters of a model that is folded at the end of a training
T = TypeVar("T")
_SHIPPED = "An exported run is faster in ONNX Runtime: export it, and measure it there."


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
    folded: FoldReport | None = None,
    opened: Run | None = None,
    most: float = float("inf"),
) -> JsonObject:
    """Write the page of a run; returns what it says as plain data.

    Args:
        folder: the run.
        out: the page; `report.html` in the run by default.
        data: where the data are, if not where the manifest says.
        fold: fold the tuners and measure latency, which takes a while for large models.
        measured: latencies that are known already, with the name of what measured them.
        folded: the folding report, if it is known already.
        opened: the run, if it is open already.
        most: parameters of a model that is folded; a folded model needs the memory of another one.

    Raises:
        UtcError: no run, no history, or a page that cannot be written. What else fails becomes a note on the page.
    """
    history = read_history(folder)
    opened, notes = opened or open_run(folder, model, weights, trust), list[str]()
    tuned, plan = opened.tuned, opened.plan
    output.progress(f"looking at {folder}")
    predictions = _noted(notes, "Predictions are left out", lambda: _predictions(opened, data, folder))
    folding: FoldReport | str = folded or ""
    _, every = trainable_parameters(tuned)
    if fold and folded is None and every > most:
        notes.append(f"A model of {every:,} parameters is not folded here: utcompile report {folder}")
        fold = False
    if fold and folded is None:
        found = _noted(notes, "The folding report is left out", lambda: utc.fold(tuned, check_inputs=None))
        folding = "The tuners could not be folded: see the note in the summary."
        if found is not None:
            module, folding = found
            if not measured:
                models = {"base": _base(opened), "tuned": tuned, "folded": module}
                measured, engine = torch_speeds(models, opened.example), f"{torch_engine()} {_SHIPPED}"
    facts = RunFacts(
        f"Run {folder.resolve().name}",
        _summary(opened, history, folder),
        history,
        plan.plans if isinstance(plan, PartsPlan) else plan,
        every,
        _size(folder / TENSORS),
        predictions,
        measured,
        engine,
        folding,
        notes,
        outside=plan.parameters - sum(p.parameters for p in plan.plans.values()) if isinstance(plan, PartsPlan) else 0,
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


def _base(opened: Run) -> nn.Module:
    """The model without its tuners."""
    plan = opened.plan
    return (plan.captured.model if isinstance(plan, PartsPlan) else plan.module).eval()


def report_of(folder: Path, model: str, data: Path) -> str | None:
    """The page at the end of a training: where it fails, the run is whole all the same, so that is only a note."""
    try:
        return str(write_report(folder, model=model, data=data, most=_MOST)["page"])
    except UtcError as error:
        output.progress(f"note: there is no page of the run: {error.brief()}")
    except Exception as error:  # of whatever a model does: the run is saved, and its figures are still to be printed
        output.progress(f"note: there is no page of the run: {type(error).__name__}: {error}")
    return None


def _noted(notes: list[str], what: str, make: Callable[[], T]) -> T | None:
    """What a function returns; where it fails, None and a note."""
    try:
        return make()
    except UtcError as error:
        notes.append(f"{what}: {error.brief()}{f' - {error.why}' if error.why else ''}")
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # no memory; a manifest with odd values
        notes.append(f"{what}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
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
    training = training if isinstance(training, Mapping) else {}
    reading = {key: training.get(key, default) for key, default in READING.items()}
    if reading["task"] == "custom":
        return None
    data, tokenizer = read_data(
        opened.choice,
        path or Path(str(recorded)),
        {**reading, "check": False},
        seed_of_split(manifest),
        False,
        folder,
    )
    check_held_out(data, manifest, str(path or recorded))
    if tokenizer is not None:
        data = fitted(data, opened.tuned, tokenizer, opened.choice.spec)
    preset = opened.choice.preset()
    names = tuple(str(name) for name in manifest.get("classes") or data.class_names)
    own = {**training, "class_weights": "none", "metrics": ()}
    return look(
        opened.tuned,
        Renumbered(data.validation, data, names),
        names,
        task=run_task(folder, task_of(with_classes(data, names), reading, own)),
        shown=data.validation,
        mean=preset.mean,
        std=preset.std,
        collate=data.collate,
    )


def _summary(opened: Run, history: Sequence[Mapping[str, float]], folder: Path) -> dict[str, str]:
    keys = [k for k in history[-1] if k.startswith("validation_") and k != "validation_loss"]
    metric = (keys or ["validation_loss"])[0].removeprefix("validation_")
    higher = metric != "loss"
    if (folder / TASK_FILE).is_file():
        described = read_task_file(folder)
        metric, higher = described.metrics[0], described.higher_is_better
    key = f"validation_{metric}"
    best = best_of([{key: float("nan"), **entry} for entry in history], metric, higher=higher)
    value = best.get(key, float("nan"))
    shown = f"{value:.2%}" if "accuracy" in key else f"{value:.4g}"
    name = metric.replace("_", " ")
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


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
