"""What a model is measured by: top-1 accuracy and cross-entropy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from utcompile.errors import UtcError
from utcompile.modes import evaluating


def accuracy(model: nn.Module, dataset: Dataset[object], batch_size: int = 64, *, workers: int = 0) -> float:
    """The share of samples whose largest logit is at their label, in [0, 1]; on the device of the model.

    Args:
        model: images `(B, C, H, W)` to logits `(B, classes)`; run in eval mode, its modes are restored.
        dataset: pairs of image and label, at least one.

    Raises:
        UtcError: the dataset is empty, or the model returns no logits.
    """
    return evaluate(model, DataLoader(dataset, batch_size, num_workers=workers))[0]


def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Accuracy and mean cross-entropy over batches of inputs and labels `(B,)`."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    right, loss, total = 0, 0.0, 0
    with evaluating(model):
        for inputs, labels in batches:
            labels = labels.to(device)
            logits = logits_of(model(inputs.to(device))).float()
            right += int((logits.argmax(1) == labels).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            total += len(labels)
    if not total:
        raise UtcError("there is no sample to measure accuracy on", code="data/not-found")
    return right / total, loss / total


def logits_of(output: object) -> Tensor:
    """The logits `(B, classes)` among what a model returns: itself, its `logits`, or its first member."""
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    elif isinstance(output, (tuple, list)) and output:
        output = getattr(output, "logits", output[0])
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise UtcError(
            f"the model returns {shape}, not logits (B, classes)",
            fix="train a model with a classification head, or a wrapper that returns its logits",
            code="train/model",
        )
    return output
