"""Latency of a run or of ONNX files: base, tuned, folded and live, in PyTorch and in ONNX Runtime, pairwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from utcompile.deploy.call import Call, ExampleInputs
from utcompile.deploy.export import export_onnx
from utcompile.deploy.onnx_model import OnnxModel
from utcompile.deploy.resident import resident
from utcompile.deploy.timing import paired
from utcompile.folding import fold
from utcompile.rewrite import TunedModule

Function = Callable[[], object]
Candidates = dict[str, tuple[Function, float, float | None]]
"""By name: the call, the MB of its file or parameters, and of its memory."""


@dataclass(frozen=True)
class Timed:
    """One row of the table.

    Attributes:
        what: what was measured.
        batch, threads: samples per call, and threads within an operation.
        median, lower, upper: median and quartiles in milliseconds.
        ratio: the median over rounds of this time by the first row's of the same batch and threads.
        rounds: how many there were.
        megabytes: of an ONNX file, or of the parameters of a module.
        memory: the peak of the memory that the file adds to a process of ONNX Runtime, in MB; None for PyTorch.
    """

    what: str
    batch: int
    threads: int
    median: float
    lower: float
    upper: float
    ratio: float
    rounds: int
    megabytes: float
    memory: float | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain data."""
        return asdict(self)


def bench_files(
    paths: Sequence[Path],
    batch_sizes: Sequence[int],
    threads: Sequence[int],
    rounds: int,
    providers: Sequence[str] = ("CPUExecutionProvider",),
) -> list[Timed]:
    """Measure ONNX files that `export_onnx` wrote, on zeros; those with tasks without a task, and with their first.

    Raises:
        UtcError: a file is missing or is no ONNX file, or does not take a batch size.
    """
    rows: list[Timed] = []
    for count in threads:
        names = [path.name if len({p.name for p in paths}) == len(paths) else str(path) for path in paths]
        opened = {
            name: OnnxModel(path, threads=count, providers=providers, spin=False)
            for name, path in zip(names, paths, strict=True)
        }
        sizes = {name: _megabytes(model.path) for name, model in opened.items()}
        for batch in batch_sizes:
            candidates: Candidates = {}
            for name, model in opened.items():
                feeds = model.smallest(batch)
                model.check(feeds)
                for task in (None, *model.tasks[:1]):
                    what = f"{name}, task {task}" if task else name
                    memory = _memory(model, feeds, task, count, providers)
                    candidates[what] = (partial(model.run_task, feeds, task), sizes[name], memory)
            rows += _timed(candidates, batch, count, rounds)
    return rows


def bench_run(
    tuned: TunedModule,
    example_inputs: ExampleInputs,
    run: Path,
    folder: Path,
    batch_sizes: Sequence[int],
    threads: Sequence[int],
    rounds: int,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    *,
    compiled: bool = False,
) -> list[Timed]:
    """Measure a tuned module: its base, itself and folded, in PyTorch and ONNX Runtime, and live in ONNX Runtime.

    Args:
        run: the run's folder, whose tensors are the task of the live file.
        folder: where the ONNX files are written.
        compiled: with `torch.compile`, too.
    """
    call = Call.of(tuned, example_inputs)
    folded, _ = fold(tuned)
    base = tuned.base_module()
    modules: dict[str, nn.Module] = {"base": base, "tuned": tuned, "folded": folded}
    paths = {kind: folder / f"{kind}.onnx" for kind in modules}
    axes = {name: dict(shape) for name, shape in zip(call.names, call.axes, strict=True) if shape}
    export_onnx(base, paths["base"], example_inputs, dynamic=axes)
    for kind in ("tuned", "folded"):
        export_onnx(modules[kind], paths[kind], example_inputs)
    paths["live"] = folder / "live.onnx"
    export_onnx(tuned, paths["live"], example_inputs, tasks={"task": run})
    rows: list[Timed] = []
    for count in threads:
        opened = {kind: OnnxModel(path, threads=count, providers=providers, spin=False) for kind, path in paths.items()}
        for batch in batch_sizes:
            tensors = call.random(batch)
            feeds = dict(zip(call.names, tensors, strict=True))
            candidates: Candidates = {}
            for kind, model in opened.items():
                task = "task" if kind == "live" else None
                memory = _memory(model, feeds, task, count, providers)
                call_of = partial(model.run_task, feeds, task)
                candidates[f"{kind}, ONNX Runtime"] = (call_of, _megabytes(model.path), memory)
            for kind, module in modules.items():
                size = sum(p.numel() * p.element_size() for p in module.parameters()) / 1e6
                candidates[f"{kind}, PyTorch"] = (partial(_called, module, call, tensors), size, None)
                if compiled:
                    fast = cast("nn.Module", torch.compile(module))
                    candidates[f"{kind}, compiled"] = (partial(_called, fast, call, tensors), size, None)
            with _torch_threads(count):
                rows += _timed(candidates, batch, count, rounds)
    return rows


def _called(module: nn.Module, call: Call, tensors: Sequence[Tensor]) -> object:
    with torch.inference_mode():
        return call.run(module, tensors)


def _timed(candidates: Candidates, batch: int, threads: int, rounds: int) -> list[Timed]:
    found = paired({name: function for name, (function, *_) in candidates.items()}, rounds)
    return [
        Timed(name, batch, threads, one.median, one.lower, one.upper, one.ratio, one.rounds, *candidates[name][1:])
        for name, one in found.items()
    ]


def _memory(
    model: OnnxModel, feeds: Mapping[str, Tensor], task: str | None, threads: int, providers: Sequence[str]
) -> float | None:
    whole = model.whole_feeds(feeds, task)
    return resident(model.path, whole, adapter=model.adapter_of(task), threads=threads, provider=providers[0])


def _megabytes(path: Path) -> float:
    files = [path, path.with_name(f"{path.name}.data")]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
