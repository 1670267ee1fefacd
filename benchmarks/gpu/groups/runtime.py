"""ONNX Runtime's CUDA provider: does it load, does it agree, how long does a call take?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

import utcompile as utc
from benchmarks.gpu.row import Check, Findings, NotRun
from benchmarks.gpu.steps import apart, logits, moved, shaken, tf32
from benchmarks.gpu.subjects import SMALL, Subject, large
from benchmarks.measure import repeated

_NEEDS = ("timm", "onnx", "onnxscript", "onnxruntime")
_CUDA = "CUDAExecutionProvider"


def checks(device: str, quick: bool) -> Iterator[Check]:
    """A folded ViT."""
    subject = SMALL["vit"] if quick else next(iter(large(quick).values()))
    yield Check("ONNX Runtime", "vit, folded", partial(_session, subject, device, quick), seconds=90, needs=_NEEDS)


def _session(subject: Subject, device: str, quick: bool, found: Findings) -> None:
    """The provider computes in TF32 by default: ten bits of mantissa."""
    import onnxruntime

    from utcompile.deploy import session

    offered = onnxruntime.get_available_providers()
    if device == "cuda" and _CUDA not in offered:
        raise NotRun(f"this onnxruntime has no {_CUDA}, it offers {', '.join(offered)}")
    model, inputs = subject.make()
    tuned = shaken(utc.compile(model, "u_tuning/dual_foldable", inputs, verify="shapes"), 0.02)
    folded, _ = utc.fold(tuned)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        utc.export_onnx(folded, path, inputs)
        opened = session(path, providers=[*([_CUDA] if device == "cuda" else []), "CPUExecutionProvider"])
    feeds = {entry.name: inputs[entry.name].numpy() for entry in opened.get_inputs()}
    with torch.no_grad(), tf32(False):
        expected = logits(folded.to(device)(**moved(inputs, device)))
    found.note(provider=opened.get_providers()[0])
    found.at_most("error", apart(torch.from_numpy(opened.run(None, feeds)[0]), expected), 1e-2)
    row = repeated("", "", lambda: opened.run(None, feeds), 2 if quick else 20)
    found.note(batch=len(next(iter(inputs.values()))), ms=row.median)
