"""One ONNX file for many tasks, in ONNX Runtime: latency over the base's file, switching, memory and size."""

from __future__ import annotations

import copy
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import utcompile as utc
from benchmarks.folding import shake
from benchmarks.measure import Row, paired

Inputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Job:
    """A model, its rules, how many tasks its file has, and the bar for the ratio of one task to the base."""

    name: str
    build: Callable[[], tuple[nn.Module, Inputs]]
    rules: str
    variables: dict[str, int]
    routing: str
    tasks: int
    batch: int
    bar: float


def bert() -> tuple[nn.Module, Inputs]:
    """4 layers of 256, 128 tokens, 10 classes."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=8000,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        num_labels=10,
    )
    ids = torch.randint(0, 8000, (2, 128))
    return BertForSequenceClassification(config).eval(), (ids, torch.ones_like(ids))


def image_model(name: str) -> tuple[nn.Module, Inputs]:
    """A model of timm at 224 px, 10 classes."""
    return timm.create_model(name, num_classes=10).eval(), (torch.randn(2, 3, 224, 224),)


VIT, LITE = partial(image_model, "vit_small_patch16_224"), partial(image_model, "efficientnet_lite0")
JOBS = (
    Job("BERT 4x256", bert, "u_tuning/dual", {"dim": 8}, "call", 2, 1, 1.05),
    Job("BERT 4x256", bert, "u_tuning/dual", {"dim": 8}, "row", 64, 8, 1.10),
    Job("EfficientNet-Lite0", LITE, "bitfit/biases", {}, "call", 2, 1, 1.02),
    Job("ViT-S/16", VIT, "u_tuning/dual", {"dim": 8}, "call", 2, 1, 1.08),
    Job("ViT-S/16", VIT, "u_tuning/dual", {"dim": 8}, "row", 64, 8, 1.10),
)


def run(quick: bool) -> Iterator[Row]:
    """Ratios are of the base's file in the same round, of the CPU time of one thread: neighbours take no part in it."""
    for job in JOBS[:1] if quick else JOBS:
        with tempfile.TemporaryDirectory() as folder:
            yield from _latency(job, Path(folder), 5 if quick else 40)
    with tempfile.TemporaryDirectory() as folder:
        yield from _resident(Path(folder), 3 if quick else 50)


def _files(job: Job, folder: Path) -> tuple[Path, Path, Inputs]:
    """The base's file, and the one with tasks; all but two of them are copies of those, in memory that is theirs."""
    torch.manual_seed(0)
    model, example = job.build()
    tuned = utc.compile(model, job.rules, example, vars=job.variables, verify="shapes").eval()
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        other = copy.deepcopy(tuned)
        shake(other)
        runs.append(utc.save_tuners(other, folder / f"run{seed}"))
    captured = utc.capture(model, example, verify="shapes")
    base = utc.export_onnx(captured, folder / "base.onnx", example, batch_sizes=(1,)).path
    tasks: dict[str, Any] = {f"t{i}": runs[i % 2] for i in range(job.tasks)}
    file = utc.export_onnx(tuned, folder / "tasks.onnx", example, tasks=tasks, routing=job.routing, batch_sizes=(1,))
    return base, file.path, example


def _latency(job: Job, folder: Path, rounds: int) -> Iterator[Row]:
    base, file, example = _files(job, folder)
    plain, model = (utc.OnnxModel(path, threads=1, spin=False) for path in (base, file))
    inputs = tuple(torch.cat([t] * job.batch)[: job.batch] for t in example)
    feeds = model.feeds(inputs, {})
    names = list(model.tasks)
    rows: dict[str, Callable[[], object]] = {
        "base": partial(plain.run_task, plain.feeds(inputs, {}), None),
        "no task": partial(model.run_task, feeds, None),
    }
    if job.routing == "row":
        rows |= {
            "one task": partial(model.run_task, feeds, [names[1]] * job.batch),
            "another task in each row": partial(model.run_task, feeds, names[: job.batch]),
        }
    else:
        turn = iter(range(10**9))
        rows |= {
            "one task": partial(model.run_task, feeds, names[0]),
            "another task in each call": lambda: model.run_task(feeds, names[next(turn) % len(names)]),
        }
    title = f"{job.name}, {job.rules} {job.variables}, {job.routing}, {job.tasks} tasks, batch {job.batch}"
    found = paired(title, rows, rounds, warmup=3, clock=time.thread_time)
    size = f"{file.stat().st_size / 1e6:.1f} MB, base {base.stat().st_size / 1e6:.1f} MB"
    for what, row in found.items():
        note = size if what == "base" else "" if what == "no task" else f"bar {job.bar}"
        yield replace(row, note=note)
    if job.routing == "call":  # switching, over no switching
        pair = {name: rows[name] for name in ("one task", "another task in each call")}
        last = list(paired(f"{title}, switching", pair, rounds, warmup=3, clock=time.thread_time).values())[-1]
        yield replace(last, note="bar 1.01")


def _resident(folder: Path, count: int) -> Iterator[Row]:
    """Memory of a session with all tasks loaded, over one session and their adapter files; size of a file by rows."""
    job = JOBS[0]
    _, file, example = _files(Job(job.name, bert, job.rules, job.variables, "call", 2, 1, job.bar), folder)
    for i in range(2, count):
        utc.add_task(file, folder / f"run{1 + i % 2}", f"t{i}")
    adapter = file.with_name("tasks.t0.onnx_adapter").stat().st_size / 1e6
    gc.collect()
    before = _megabytes()
    model = utc.OnnxModel(file, threads=1)
    model(*example)
    session = _megabytes() - before
    for name in model.tasks:
        model(*example, task=name)
    whole = _megabytes() - before
    ratio = whole / (session + count * adapter)
    note = (
        f"{whole:.1f} MB; one session {session:.1f} MB, an adapter {adapter:.3f} MB; {ratio:.3f} of their sum, bar 1.10"
    )
    yield Row("memory", f"{count} tasks resident", 0, 0, 0, 1, None, note)
    rows = Job(job.name, bert, job.rules, job.variables, "row", 2, 1, job.bar)
    (folder / "rows").mkdir()
    base, small, _ = _files(rows, folder / "rows")
    many = 16 if count < 10 else 1024
    tasks = _grown(small, many)
    bound = base.stat().st_size / 1e6 + (many + 1) * adapter
    size = tasks.stat().st_size / 1e6
    yield Row(
        "size",
        f"a file with {many} tasks by row",
        0,
        0,
        0,
        1,
        None,
        f"{size:.1f} MB, {size / bound:.3f} of base and tuners, bar 1.05",
    )


def _grown(path: Path, count: int) -> Path:
    """The file with its stacks repeated to a number of tasks, instead of a thousand calls of `add_task`."""
    import numpy as np
    import onnx_ir as ir

    from utcompile.deploy.task_files import read_task_file

    model = ir.load(path)
    for name in read_task_file(path).stacks:
        value = model.graph.initializers[name]
        assert value.const_value is not None
        rows = value.const_value.numpy()
        value.const_value = ir.tensor(np.resize(rows, (count + 1, *rows.shape[1:])), name=name)
        value.shape = ir.Shape([count + 1, *rows.shape[1:]])
    target = path.with_name("grown.onnx")
    ir.save(model, target)
    return target


def _megabytes() -> float:
    """What the process keeps in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * 4096 / 1e6
