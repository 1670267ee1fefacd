"""Latencies of models in turns: in PyTorch, or exported in ONNX Runtime."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn

from utcompile.deploy import export_onnx, latency
from utcompile.deploy.call import ExampleInputs, resized
from utcompile.deploy.timing import in_turns
from utcompile.errors import UtcError
from utcompile.report import Speed

_SECONDS = 4.0  # for each model


def torch_speeds(models: Mapping[str, nn.Module], example: ExampleInputs) -> list[Speed]:
    """Latencies of one sample in PyTorch, each round running every model once."""
    one = resized(example, 1)
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


def onnx_speeds(
    models: Mapping[str, nn.Module], example: ExampleInputs, refused: Callable[[str, UtcError], object]
) -> list[Speed]:
    """Latencies of one sample in ONNX Runtime, of files that are proven equal and then removed.

    Args:
        refused: called for each model that is not exported, which the others are measured without.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for index, (name, model) in enumerate(models.items()):
            try:
                files[name] = export_onnx(model.eval(), Path(folder) / f"{index}.onnx", example).path
            except UtcError as error:
                refused(name, error)
        found = latency(files, example) if files else {}
    return [Speed(name, s.median, s.lower, s.upper, s.ratio) for name, s in found.items()]


def torch_engine() -> str:
    """What measured, in words."""
    return f"PyTorch {torch.__version__}, {_threads()}, one sample, the models in turns."


def onnx_engine() -> str:
    """What measured, in words."""
    import onnxruntime

    return f"ONNX Runtime {onnxruntime.__version__} on this machine's CPU, one sample, the files in turns."


def _threads() -> str:
    threads = torch.get_num_threads()
    return f"on a CPU with {threads} {'thread' if threads == 1 else 'threads'}"
