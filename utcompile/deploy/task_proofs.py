"""The proofs of a file with several tasks: each task against its own PyTorch model, together in a batch, and off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from utcompile.deploy.axes import BATCH
from utcompile.deploy.call import Call
from utcompile.deploy.onnx_model import Arrays, OnnxModel
from utcompile.deploy.parity import OutputParity, difference
from utcompile.deploy.references import Expected, reference
from utcompile.errors import UtcError
from utcompile.rewrite import TunedModule, disable_tuners

_ROWS = 6  # of the batch in which tasks are mixed


class Named(Protocol):
    """A task with its own model."""

    @property
    def name(self) -> str: ...

    def swapped(self, tuned: TunedModule) -> nn.Module:
        """The task's own model in PyTorch."""


def prove_tasks(
    tuned: TunedModule,
    call: Call,
    tasks: Sequence[Named],
    expected: Sequence[Expected],
    path: Path,
    bound: float | None,
    provider: str = "CPUExecutionProvider",
) -> tuple[list[OutputParity], tuple[str, ...]]:
    """Compare a written file with PyTorch for every task at every size.

    Returns:
        The comparisons, and notes: whether the file without a task is the base, tasks that change nothing.

    Raises:
        UtcError: a task that changes PyTorch's outputs does not change the file's, or the file does not run.
    """
    model = OnnxModel(path, providers=(provider,), blocked=False)  # what any session of ONNX Runtime computes
    fast = OnnxModel(path, providers=(provider,))
    entries: list[OutputParity] = []
    notes: list[str] = []
    off = [model.run_task(_feeds(call, one.tensors), None) for one in expected]
    for one, outputs in zip(expected, off, strict=True):
        entries += _compared("no task", one, one.outputs, outputs, bound)
    notes.append(_off(tuned, call, expected, off, bound))
    for task in tasks:
        its = task.swapped(tuned)
        for one in expected:
            wanted = reference(its, call, one.tensors, one.batch)
            outputs = model.run_task(_feeds(call, one.tensors), task.name)
            entries += _compared(task.name, one, wanted, outputs, bound)
            if one is expected[0]:
                notes += _unmoved(task.name, one.outputs, wanted, off[0], outputs, path)
                again = fast.run_task(_feeds(call, one.tensors), task.name) if fast.is_blocked else {}
                mine = {key: wanted[key] for key in again}
                entries += _compared(f"{task.name} in blocks", one, mine, again, bound)
    if BATCH in call.sizes:
        entries += _mixed(tuned, call, tasks, model, bound)
    return entries, tuple(notes)


def _feeds(call: Call, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return dict(zip(call.names, tensors, strict=True))


def _compared(
    task: str, one: Expected, wanted: Mapping[str, Tensor], outputs: Arrays, bound: float | None
) -> list[OutputParity]:
    return [
        OutputParity(
            name, one.batch, f"{task}, {one.source}", *difference(name, value, outputs[name], bound), one.shown
        )
        for name, value in wanted.items()
    ]


def _off(
    tuned: TunedModule, call: Call, expected: Sequence[Expected], off: Sequence[Arrays], bound: float | None
) -> str:
    """What the file computes without a task, compared with the base."""
    worst, is_equal, is_exact = 0.0, True, True
    with torch.no_grad():
        for one, outputs in zip(expected, off, strict=True):
            with disable_tuners(tuned):
                base = call.run(tuned, one.tensors)
            for name, value in base.items():
                if value.shape != outputs[name].shape:
                    return "without a task, the file computes what the module computes: its head is not the base's"
                error, most = difference(name, value, outputs[name], bound)
                worst, is_equal = max(worst, error), is_equal and error <= most
                is_exact &= np.array_equal(value.numpy(), outputs[name])
    if not is_equal:
        return (
            "without a task, the file computes what the module computes, and not the base: its tuners are trained "
            "(compile the model anew to have the base), or of a kind that changes the model from the start, as prefixes"
        )
    how = "bit for bit" if is_exact else f"to {worst:.1e}"
    return f"without a task, the file computes the base, as in PyTorch {how}"


def _unmoved(
    task: str,
    base: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    off: Arrays,
    on: Arrays,
    path: Path,
) -> list[str]:
    """A swap that is dead in the file, or in PyTorch."""
    moved = any(base[n].shape != v.shape or not torch.equal(base[n], v) for n, v in wanted.items())
    if not moved:
        return [f"task {task!r} changes nothing on the example"]
    if all(np.array_equal(off[n], on[n]) for n in wanted):
        raise UtcError(
            f"task {task!r} changes the model in PyTorch, and not the file",
            where=str(path),
            fix="report it, with the model and the rules",
            code="export/disagrees",
        )
    return []


def _mixed(
    tuned: TunedModule, call: Call, tasks: Sequence[Named], model: OnnxModel, bound: float | None
) -> list[OutputParity]:
    """A batch of which each row has another task; and with another task in one row, all other rows stay."""
    names = [task.name for task in tasks]
    chosen = [names[(3 * row + 1) % len(names)] for row in range(_ROWS)]
    try:
        tensors = call.random({BATCH: _ROWS}, seed=7)
        wanted = {t.name: reference(t.swapped(tuned), call, tensors, _ROWS) for t in tasks if t.name in chosen}
    except UtcError:  # a guard forbids this batch
        return []
    first = {name: value.shape for name, value in next(iter(wanted.values())).items()}
    if any(not shape or shape[0] != _ROWS for shape in first.values()):
        return []
    entries = []
    feeds = _feeds(call, tensors)
    found = model.run_task(feeds, chosen)
    for row, task in enumerate(chosen):
        one = Expected("mixed batch", {**call.sizes, BATCH: _ROWS}, tensors, {})
        mine = {n: v[row : row + 1] for n, v in wanted[task].items()}
        theirs = {n: _cut(v[row : row + 1], mine[n]) for n, v in found.items()}
        entries += _compared(f"{task} in row {row}", one, mine, theirs, bound)
    if len(names) > 1:
        other = [*chosen[:-1], names[(names.index(chosen[-1]) + 1) % len(names)]]
        again = model.run_task(feeds, other)
        for name, value in found.items():
            one = Expected("another task in the last row", {**call.sizes, BATCH: _ROWS}, tensors, {})
            kept = torch.from_numpy(value[:-1].copy())
            entries += _compared("other rows", one, {name: kept}, {name: _cut(again[name][:-1], kept)}, bound)
    return entries


def _cut(values: np.ndarray, like: Tensor) -> np.ndarray:
    """Without the classes that another task of the batch has more."""
    return values[tuple(slice(0, size) for size in like.shape)]
