"""Top-1 accuracy of an ONNX file in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from utcompile.deploy.runtime import feeds_in_order, run, session
from utcompile.errors import UtcError


def accuracy_onnx(
    path: str | Path,
    batches: Iterable[tuple[Tensor | tuple[object, ...] | Mapping[str, object], Tensor]],
    threads: int | None = None,
) -> float:
    """The share of samples whose largest logit is at their label, in [0, 1].

    Args:
        path: the ONNX file; its first output is the logits, `(B, classes)`.
        batches: pairs of inputs and labels `(B,)`, as a `DataLoader` gives them.
        threads: threads within an operation.

    Raises:
        UtcError: the file is not ONNX or does not fit the inputs, the logits are not `(B, classes)`, or there is no
            sample.
    """
    opened = session(path, threads)
    right = total = 0
    for inputs, labels in batches:
        logits = next(iter(run(opened, feeds_in_order(opened, inputs)).values()))
        if logits.ndim != 2 or len(logits) != len(labels):
            raise UtcError(
                f"the first output is of shape {logits.shape}, not ({len(labels)}, classes)",
                where=str(path),
                fix="export a model whose first output is its logits",
                code="onnx/inputs",
            )
        right += int((np.argmax(logits, axis=1) == labels.cpu().numpy()).sum())
        total += len(labels)
    if not total:
        raise UtcError("there is no sample to measure accuracy on", code="data/not-found")
    return right / total
