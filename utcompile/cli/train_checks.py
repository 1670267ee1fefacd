"""What `utcompile train` refuses before torch is imported: values out of range, options that a task does not use."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from utcompile.cli.names import timm_optimizers
from utcompile.errors import UtcError, did_you_mean

TASKS = ("classify", "multilabel", "regress", "segment", "text", "custom")
_CLASSES = ("accuracy", "balanced_accuracy", "top5_accuracy", "f1", "auroc", "mcc")
METRICS: Mapping[str, tuple[str, ...]] = {  # a custom task has its own
    "classify": _CLASSES,
    "text": _CLASSES,
    "multilabel": ("f1", "accuracy", "average_precision", "auroc"),
    "regress": ("mae", "mse", "rmse", "r2"),
    "segment": ("iou", "pixel_accuracy", "balanced_accuracy"),
}
WORDS: Mapping[str, tuple[str, ...]] = {
    "schedule": ("cosine", "onecycle", "linear", "poly", "step", "constant"),
    "class_weights": ("none", "balanced"),
    "precision": ("no", "bf16", "fp16"),
    "device": ("auto", "cpu", "cuda", "mps"),
}
_LEAST = {
    **dict.fromkeys(("epochs", "batch_size", "accumulate", "patience", "num_classes", "max_length"), 1),
    **dict.fromkeys(("workers", "seed", "weight_decay", "mixup", "cutmix"), 0),
}
_SIZE = re.compile(r"none|\s*(?=[\d.]*[1-9])(\d{1,15}(\.\d*)?\s*[KMGT]I?B?|\d{1,15}\s*B?)\s*", re.IGNORECASE | re.ASCII)
_SHARES = ("warmup", "label_smoothing")
_POSITIVE = {"lr": "a positive learning rate, e.g. 1e-3", "grad_clip": "a positive norm, or none"}
MOST = {"lr": 3e37, **dict.fromkeys(("weight_decay", "mixup", "cutmix"), 1e8), "seed": 2**63 - 1}
_IMAGES = ("classify", "multilabel", "regress", "segment")
# Which tasks use an option; any task uses the others.
USES: Mapping[str, tuple[str, ...]] = {
    "label_smoothing": ("classify", "text"),
    "class_weights": ("classify", "text", "multilabel", "segment"),
    "mixup": ("classify",),
    "cutmix": ("classify",),
    "augment": _IMAGES,
    "policy": ("classify", "multilabel", "regress"),
    "input_size": (*_IMAGES, "custom"),
    "input_column": (*_IMAGES, "text"),
    "label_column": (*_IMAGES, "text"),
    "tokenizer": ("text",),
    "max_length": ("text",),
    "loss": ("custom",),
    "metrics_function": ("custom",),
    "lower_is_better": ("custom",),
}
_UNUSED: tuple[object, ...] = (None, False, [], (), 0.0, "none")  # values with which an option does nothing


def check_values(values: Mapping[str, object]) -> None:
    """Raise where a value is out of its range, or is none of the words that there are.

    Args:
        values: of the options, by their names in a recipe.
    """
    for name, known in WORDS.items():
        if values[name] not in known:
            more = "; CUDA_VISIBLE_DEVICES chooses among several" if name == "device" else ""
            raise _wrong(f"unknown {name} {values[name]!r}", did_you_mean(str(values[name]), known) + more)
    for name, least in _LEAST.items():
        if (value := _number(values[name])) is not None and not (value >= least and math.isfinite(value)):
            raise _wrong(f"{name} is {values[name]}", f"give {least} or more")
    for name in _SHARES:
        if not 0 <= (_number(values[name]) or 0.0) < 1:
            raise _wrong(f"{name} is {values[name]}", "give a share from 0 to below 1")
    for name, fix in _POSITIVE.items():
        if (value := _number(values[name])) is not None and not (value > 0 and math.isfinite(value)):
            raise _wrong(f"{name} is {values[name]}", f"give {fix}")
    for name, most in MOST.items():
        if (_number(values[name]) or 0) > most:
            raise _wrong(f"{name} is {values[name]}", f"give at most {most:g}")
    if not _SIZE.fullmatch(str(values["cache"])):
        raise _wrong(f"cache is {values['cache']!r}", "give a size, e.g. 4GB, or none")
    if (ema := _number(values["ema"])) is not None and not 0 < ema < 1:
        raise _wrong(f"ema is {ema}", "give a share between 0 and 1, e.g. 0.99, or none")


def check_uses(values: Mapping[str, object], task: str) -> None:
    """Raise where an option is given that the task has no use for, or two that contradict each other."""
    for name, tasks in USES.items():
        if task not in tasks and values[name] not in _UNUSED:
            raise _wrong(
                f"the task {task!r} has no use for {name}",
                f"leave it out; it is of {', '.join(tasks)}",
            )
    if values["policy"] and values["augment"] is False:
        raise _wrong("--policy and --no-augment contradict each other", "leave one of them out")
    if task == "custom" and values["metric"] and not values["metrics_function"]:
        raise _wrong(
            "the metrics of a custom task are those that your function returns",
            "give metrics_function=FILE.py:NAME, or leave out metric: the loss then chooses the best epoch",
        )


def check_names(optimizer: str, metrics: Sequence[str], task: str) -> None:
    """Raise where timm has no such optimizer, or the task no such metric."""
    known = timm_optimizers()
    if known and optimizer not in known and not optimizer.startswith("bnb"):
        raise _wrong(f"timm has no optimizer {optimizer!r}", did_you_mean(optimizer, known))
    for name in metrics:
        if task in METRICS and name not in METRICS[task]:
            raise _wrong(f"the task {task!r} has no metric {name!r}", did_you_mean(name, METRICS[task]))


def check_files(values: Mapping[str, object]) -> None:
    """Raise where a file or folder does not exist that an option names."""
    for name in ("loss", "metrics_function", "example"):
        file, colon, _ = str(values[name] or "").rpartition(":")
        if colon and file.endswith(".py") and not Path(file).is_file():
            raise UtcError("there is no such Python file", where=file, fix=f"correct {name}", code="model/unknown")
    if values["tokenizer"] and not Path(str(values["tokenizer"])).is_dir():
        raise UtcError(
            "there is no folder with this tokenizer",
            where=str(values["tokenizer"]),
            fix="give a local folder with tokenizer.json or vocab.txt; names on the hub are not downloaded",
            code="data/tokenizer",
        )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _wrong(what: str, fix: str) -> UtcError:
    return UtcError(what, fix=fix, code="train/settings")
