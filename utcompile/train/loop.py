"""The training loop: accelerate for devices and precision, timm for the optimizer and the schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from timm.optim import create_optimizer_v2
from torch import nn

from utcompile.errors import UtcError
from utcompile.train.dataset import Data
from utcompile.train.epoch import Epochs, Settings
from utcompile.train.needs import check_accelerate
from utcompile.train.prefix_cache import How, keep_prefix
from utcompile.train.randomness import caller_keeps_its_state
from utcompile.train.run_folder import STATE, RunFolder, SaveOrLoad
from utcompile.train.run_state import load_part
from utcompile.train.schedule import create_schedule

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class TrainResult:
    """How a run went.

    Attributes:
        best_accuracy: the best validation accuracy, in [0, 1], and `best_epoch`, the first epoch that reached it.
        history: one entry per epoch: `epoch, train_loss, validation_loss, validation_accuracy, lr, seconds`.
        seconds: the whole run's time, of all its parts where it was resumed.
    """

    best_accuracy: float
    best_epoch: int
    history: tuple[dict[str, float], ...]
    seconds: float

    def __str__(self) -> str:
        return (
            f"best validation accuracy {self.best_accuracy:.2%} in epoch {self.best_epoch} of {len(self.history)}, "
            f"{self.seconds:.1f} s"
        )


def fit(
    model: nn.Module,
    data: Data,
    *,
    out: str | Path,
    save: SaveOrLoad,
    load: SaveOrLoad,
    epochs: int = 10,
    batch_size: int = 64,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    schedule: str = "cosine",
    warmup: float = 0.1,
    seed: int = 0,
    workers: int = 0,
    resume: bool = False,
    precision: str = "no",
    progress: bool = True,
    label_smoothing: float = 0.0,
    grad_clip: float | None = None,
    channels_last: bool = False,
    cpu: bool = False,
    prefix_cache: int | str | None = None,
) -> TrainResult:
    """Train the parameters of `model` that require a gradient, and leave it with the best of them.

    AdamW with decay on matrices only, a learning rate set before every step, cross-entropy, validation after each
    epoch. The same seed gives the same result, and a run that was killed and resumed gives, on a CPU, bit for bit the
    result of one that was not.

    Args:
        model: images `(B, C, H, W)` to logits `(B, classes)`.
        out: the run's folder; see `run_folder`.
        save, load: write the trained parts to a folder and read them back, e.g. `partial(utc.save_tuners, tuned)`.
        lr: the highest learning rate.
        schedule: `cosine` or `onecycle`; `warmup` is the share of all steps in which the rate rises.
        workers: processes that read the data.
        resume: go on with the run in `out`; the settings must be the same. A finished run is just loaded.
        precision: `no`, `bf16` or `fp16`: autocast.
        progress: a progress bar, where there is a console.
        grad_clip: the largest norm of all gradients together.
        channels_last: give the model images in this memory format, which makes convolutions on a CPU faster.
        cpu: stay on the CPU where there is an accelerator.
        prefix_cache: the most memory, as "4GB", for the results of the frozen layers below the first tuner, which are
            then computed once per sample; for data that is the same in every epoch. See `prefix_cache`.

    Raises:
        UtcError: nothing to train, no logits or fewer than there are classes, a loss that is not finite, a folder
            that contains a run (or none, with `resume`) or in which another process trains, or a setting out of range.
    """
    samples = len(data.train)  # type: ignore[arg-type]
    settings = Settings(
        epochs, batch_size, lr, weight_decay, schedule, warmup, seed, precision, label_smoothing, grad_clip, samples
    )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UtcError(
            "the model has no trainable parameter",
            where=type(model).__name__,
            fix="insert tuners, or name what stays trainable under `train:` in the rules",
            code="train/model",
        )
    if not samples or not len(data.validation):  # type: ignore[arg-type]
        raise UtcError("there is nothing to train on", why=str(data), code="data/not-found")
    accelerator = _accelerator(precision, cpu)
    folder, mode = RunFolder(out, save, load), model.training
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    how = How(batch_size, workers, accelerator.device, memory_format, accelerator.autocast)
    run = keep_prefix(model, data, how, prefix_cache, epochs=epochs, out=folder.out, resume=resume)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=lr, weight_decay=weight_decay)
    rate = create_schedule(schedule, optimizer, lr=lr, steps=epochs * settings.batches, warmup=warmup)
    prepared, stepper = accelerator.prepare(run.model, optimizer)
    stateful: dict[str, Any] = {"optimizer": optimizer, "schedule": rate}
    if accelerator.scaler is not None:
        stateful["scaler"] = accelerator.scaler
    history: list[dict[str, float]] = []
    try:
        with folder:
            if resume:
                state = folder.resume(settings.as_dict(), tuple(stateful))
                for name, part in stateful.items():
                    load_part(part, state, name, folder.last / STATE)
                history = state["history"]
            else:
                folder.start()
            runner = Epochs(
                accelerator,
                prepared,
                stepper,
                rate,
                run.data,
                settings,
                workers=0 if run.settings else workers,
                memory_format=memory_format,
            )
            done, total = len(history) * settings.batches, epochs * settings.batches
            with caller_keeps_its_state(), _bar(progress, done, total) as advance:
                for epoch in range(len(history) + 1, epochs + 1):
                    filled = run.fill()  # at first
                    history.append(runner.run(epoch, advance))
                    history[-1]["seconds"] = round(history[-1]["seconds"] + filled, 3)
                    if _best(history)["epoch"] == epoch:
                        folder.keep_best()
                    parts = {name: part.state_dict() for name, part in stateful.items()}
                    folder.keep_last({"settings": {**settings.as_dict(), **run.settings}, **parts}, history)
    finally:
        # Takes off the wrapper for autocast, which cannot be pickled.
        accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        model.train(mode)
    folder.load_best()
    best = _best(history)
    seconds = sum(entry["seconds"] for entry in history)
    return TrainResult(best["validation_accuracy"], int(best["epoch"]), tuple(history), seconds)


def _accelerator(precision: str, cpu: bool) -> Accelerator:
    check_accelerate()
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # accelerate keeps one state per process and would refuse another precision than the first.
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=precision, cpu=cpu)
    if accelerator.num_processes > 1:
        raise UtcError(
            f"fit runs in one process, not {accelerator.num_processes}",
            fix="train the model in your own distributed loop: it is an ordinary nn.Module",
            code="train/model",
        )
    return accelerator


def _best(history: Sequence[dict[str, float]]) -> dict[str, float]:
    return max(history, key=lambda entry: entry["validation_accuracy"])  # the first of equals


@contextmanager
def _bar(wanted: bool, done: int, total: int) -> Iterator[Callable[[str], None]]:
    """A function to call after each step with what to say; it draws where that is wanted and there is a console."""
    console = Console(stderr=True)
    if not wanted or not console.is_terminal:
        yield lambda text: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("training", total=total, completed=done)
        yield lambda text: progress.update(task, advance=1, description=text)
