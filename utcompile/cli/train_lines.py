"""What `utcompile train` tells and writes of its progress: lines, `metrics.csv`, TensorBoard."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utcompile.cli import output

if TYPE_CHECKING:
    from torch import nn

    from utcompile.cli.models import ModelChoice
    from utcompile.train import Data

METRICS_CSV = "metrics.csv"


def size_of(choice: ModelChoice, data: Data) -> str:
    if data.task == "text":
        return f", at most {data.preprocessing['max_length']} tokens"
    return "" if data.task == "custom" else f", {'x'.join(map(str, choice.preset().input_size))}"


def reporter(out: Path, epochs: int, tensorboard: bool) -> Callable[[Sequence[dict[str, float]]], str]:
    """Writes `metrics.csv` (and for TensorBoard) after each epoch; returns the epoch's line."""
    writer = _tensorboard(out) if tensorboard and output.leads() else None

    def report(history: Sequence[dict[str, float]]) -> str:
        from utcompile.files import replace_file, reported

        with reported("the metrics cannot be written", out / METRICS_CSV):
            replace_file(out / METRICS_CSV, _csv(history).encode())
        entry = history[-1]
        if writer is not None:
            for name, value in entry.items():
                if name != "epoch":
                    writer.add_scalar(name.replace("_", "/", 1) if "_" in name else name, value, int(entry["epoch"]))
            writer.flush()
        return line_of(entry, epochs)

    return report


def _tensorboard(out: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(out / "tensorboard"))


def _csv(history: Sequence[dict[str, float]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(history[0]), lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def line_of(entry: Mapping[str, float], epochs: int) -> str:
    """`epoch 2/10: loss 0.1234, validation loss 0.2345, accuracy 97.50%, 3.2 s`."""
    from utcompile.train.result import SHARES

    told = []
    for key, value in entry.items():
        name = key.removeprefix("validation_")
        if key != name and name != "loss":
            told.append(f"{name.replace('_', ' ')} {f'{value:.2%}' if name in SHARES else f'{value:.4g}'}")
    return (
        f"epoch {entry['epoch']}/{epochs}: loss {entry['train_loss']:.4f}, "
        f"validation loss {entry['validation_loss']:.4f}, {''.join(f'{t}, ' for t in told)}{entry['seconds']:.1f} s"
    )


def summary(tuned: nn.Module) -> str:
    """`41 sites (9 block, 32 pointwise), 259,530 of 3,640,000 parameters to train`."""
    from utcompile.rewrite import Whole, trainable_parameters

    found = Whole.of(tuned, "train").sites
    counts = ", ".join(f"{n} {rule}" for rule, n in Counter(s.rule for s in found).items())
    trained, every = trainable_parameters(tuned)
    sites = f"{len(found)} sites ({counts})" if counts else "no sites"
    return f"{sites}, {trained:,} of {every:,} parameters to train"
