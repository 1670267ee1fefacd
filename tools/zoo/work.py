"""What a worker of the zoo does with one model: build it, capture it, tell what came of it."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.utils._pytree as pytree

import utcompile as utc
from tools.zoo.beyond import Beyond, beyond
from tools.zoo.rows import Row, Task
from tools.zoo.specimen import Specimen
from utcompile.errors import UtcError


def work(task: Task, tell: Callable[[Row], None]) -> Row:
    """Build and capture one model; every exception of a library or of capture becomes a row."""
    with _quietly_on_one_thread():
        return _worked(task, tell)


@contextmanager
def _quietly_on_one_thread() -> Iterator[None]:
    """One core a worker, and no lines of libraries between its rows; the process is left as it was."""
    threads, level = torch.get_num_threads(), logging.root.manager.disable
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
        logging.disable(level)


def _worked(task: Task, tell: Callable[[Row], None]) -> Row:
    blank = Row(task.library, task.name, "not built", verify=task.verify)
    started = time.perf_counter()
    torch.manual_seed(0)
    try:
        specimen = specimen_of(task)
    except Exception as error:  # whatever a library raises
        return replace(blank, reason=_told(error), build_seconds=_since(started))
    built = replace(
        blank,
        status="built",
        cls=type(specimen.model).__name__,
        parameters=sum(p.numel() for p in specimen.model.parameters()),
        inputs=_shapes(specimen.inputs),
        note=specimen.note,
        fixed=specimen.dynamic == (),
        build_seconds=_since(started),
    )
    if task.verify == "none":
        return built
    tell(built)
    started = time.perf_counter()
    try:
        captured = _capture(specimen, specimen.dynamic, task.verify)
    except Exception as error:  # also what is a bug of capture
        return replace(
            built,
            status="failed",
            reason=_told(error),
            note="; ".join(filter(None, (built.note, _at_fixed_sizes(specimen)))),
            capture_seconds=_since(started),
        )
    seconds, compared = _since(started), Beyond()
    if task.verify == "full":
        compared = beyond(specimen.model, captured, specimen.inputs, specimen.dynamic)
    report: Any = captured.report
    opaque = tuple(str(o) for o in getattr(report, "opaque", ()))
    return replace(
        built,
        status="opaque" if opaque else "ok",
        nodes=len(captured.graph.nodes),
        opaque=opaque,
        pinned=tuple(str(p) for p in getattr(report, "pinned", ())),
        unreachable=len(report.unreachable),
        verified=report.verified,
        capture_seconds=seconds,
        guards=tuple(map(str, captured.guards)),
        equal=compared.equal,
        refused=compared.refused,
        false=compared.false,
        wrong=compared.wrong,
        reason="; ".join((*opaque, *compared.wrong)),
    )


def specimen_of(task: Task) -> Specimen:
    """Build a model of any of the libraries, with its inputs."""
    if task.library == "transformers":
        from tools.zoo.hugging_face import specimen as transformers_specimen

        return transformers_specimen(task)
    from tools.zoo.models import specimen

    return specimen(task)


def _capture(specimen: Specimen, dynamic: tuple[str, ...] | None, verify: str) -> utc.CapturedModule:
    return utc.capture(specimen.model, specimen.inputs, dynamic=dynamic, verify=verify)  # type: ignore[arg-type]


def _at_fixed_sizes(specimen: Specimen) -> str:
    """Whether a model that failed is captured where no size may change: it tells a cause in sizes from others."""
    if specimen.dynamic == ():
        return ""
    try:
        _capture(specimen, (), "shapes")
    except Exception:
        return ""
    return "is captured at the example's sizes"


def _shapes(inputs: tuple[Any, ...] | dict[str, Any]) -> str:
    named = inputs.items() if isinstance(inputs, Mapping) else ((str(i), v) for i, v in enumerate(inputs))
    return ", ".join(
        f"{name} {' '.join(str(list(t.shape)) for t in pytree.tree_leaves(value) if isinstance(t, torch.Tensor))}"
        for name, value in named
    )


def _told(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, UtcError):
        return text
    return f"{type(error).__name__}: {text}"[:2000]


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)
