"""The training loop: accelerate for devices and precision, timm for the optimizer and the schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from utcompile.errors import UtcError
from utcompile.train.averages import Averages
from utcompile.train.dataset import Data
from utcompile.train.epoch import Epochs
from utcompile.train.launcher import check_launcher
from utcompile.train.mixing import Mixing, check_mixing
from utcompile.train.needs import check_accelerate
from utcompile.train.optimizers import create_optimizer
from utcompile.train.prefix_cache import How, keep_prefix
from utcompile.train.processes import FollowedFolder, Processes
from utcompile.train.progress_bar import progress_bar
from utcompile.train.randomness import caller_keeps_its_state
from utcompile.train.result import TrainResult, best_of, stops_early
from utcompile.train.run_folder import STATE, RunFolder, SaveOrLoad
from utcompile.train.run_state import HasState, load_part
from utcompile.train.schedule import create_schedule
from utcompile.train.settings import Settings
from utcompile.train.tasks import Task, make_task

if TYPE_CHECKING:
    from accelerate import Accelerator


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
    mixup: float = 0.0,
    cutmix: float = 0.0,
    grad_clip: float | None = None,
    channels_last: bool = False,
    cpu: bool = False,
    prefix_cache: int | str | None = None,
    optimizer: str = "adamw",
    accumulate: int = 1,
    patience: int | None = None,
    ema: float | None = None,
    class_weights: str = "none",
    rates: Mapping[str, float] | None = None,
    decays: Mapping[str, float] | None = None,
    task: Task | None = None,
    metrics: Sequence[str] = (),
    prepare: Callable[[Path], object] | None = None,
    on_epoch: Callable[[Sequence[dict[str, float]]], str | None] | None = None,
) -> TrainResult:
    """Train the parameters of `model` that require a gradient, and leave it with the best of them.

    A learning rate set before every step, decay on matrices only, validation after each epoch. The same seed gives the
    same result, and a run that was killed and resumed gives, on a CPU, bit for bit the result of one that was not.

    Args:
        model: inputs of `data` to what its task takes; for images, `(B, C, H, W)` to logits `(B, classes)`.
        out: the run's folder; see `run_folder`.
        save, load: write the trained parts to a folder and read them back, e.g. `partial(utc.save_tuners, tuned)`.
        lr: the highest learning rate.
        schedule: `cosine onecycle linear poly step constant`; `warmup` is the share of all steps in which the rate
            rises.
        workers: processes that read the data.
        resume: go on with the run in `out`; the settings must be the same. A finished run is just loaded.
        precision: `no`, `bf16` or `fp16`: autocast.
        progress: a progress bar, where there is a console.
        label_smoothing: of classification.
        mixup, cutmix: alpha of timm's blending of images, for `classify`; 0 is off.
        grad_clip: the largest norm of all gradients together.
        channels_last: give the model images in this memory format, which makes convolutions on a CPU faster.
        cpu: stay on the CPU where there is an accelerator.
        prefix_cache: the most memory, as "4GB", for the results of the frozen layers below the first tuner, which are
            then computed once per sample; for data that is the same in every epoch. See `prefix_cache`.
        optimizer: a name of timm's.
        accumulate: batches per step of the optimizer.
        patience: stop after so many epochs without a better one.
        ema: the decay of an average of the parameters, which is validated and kept as the best instead of them.
        class_weights: `balanced` weighs classes by the inverse of their number of samples.
        rates, decays: learning rate and weight decay of the tuners of a rule, by its name; `train` is what the rules
            name under `train:`.
        task: the loss and the metrics; that of `data` by default.
        metrics: of the task of `data`; the first one chooses the best epoch.
        prepare: called with the folder once it is locked, before the first epoch; writes what belongs to the run.
        on_epoch: called with the history after each epoch; what it returns is printed above the bar.

    Raises:
        UtcError: nothing to train, outputs that do not fit the data, a loss that is not finite, a folder that contains
            a run (or none, with `resume`) or in which another process trains, or a setting out of range.
    """
    task = task or make_task(data, metrics=metrics, label_smoothing=label_smoothing, class_weights=class_weights)
    settings = Settings(
        epochs,
        batch_size,
        lr,
        weight_decay,
        schedule,
        warmup,
        seed,
        precision,
        label_smoothing,
        grad_clip,
        data.samples,
        optimizer,
        accumulate,
        patience,
        ema,
        class_weights,
        dict(rates or {}),
        dict(decays or {}),
        task.name,
        task.metrics[0],
        mixup,
        cutmix,
    )
    _check(model, data, workers)
    accelerator = _accelerator(precision, cpu)
    processes = Processes.of(accelerator, batch_size, prefix_cache)
    check_mixing(mixup, cutmix, task.name, processes.count, cached=prefix_cache is not None)
    folder = (RunFolder if processes.leads else FollowedFolder)(out, save, load)
    mode = model.training
    stepper = create_optimizer(model, settings)
    rate = create_schedule(schedule, stepper, lr=lr, steps=epochs * settings.steps, warmup=warmup)
    model.to(accelerator.device)
    averages = Averages(model, ema) if ema is not None else None
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    how = How(batch_size, workers, accelerator.device, memory_format, accelerator.autocast)
    run = keep_prefix(model, data, how, prefix_cache, epochs=epochs, out=folder.out, resume=resume)
    prepared, stepper = accelerator.prepare(run.model, stepper)
    stateful: dict[str, HasState] = {"optimizer": stepper, "schedule": rate}
    if accelerator.scaler is not None:
        stateful["scaler"] = accelerator.scaler
    if averages is not None:
        stateful["ema"] = averages
    history: list[dict[str, float]] = []
    try:
        with folder:
            processes.wait_for_the_first()
            if resume:
                state = folder.resume(settings.as_dict(), tuple(stateful))
                for name, part in stateful.items():
                    load_part(part, state, name, folder.last / STATE)
                history = state["history"]
            else:
                folder.start()
            processes.wait_for_the_others()
            if prepare is not None and processes.leads:
                prepare(folder.out)
            runner = Epochs(
                accelerator,
                prepared,
                stepper,
                rate,
                run.data,
                task,
                settings,
                averages=averages,
                processes=processes,
                workers=0 if run.settings else workers,
                memory_format=memory_format,
                mixing=Mixing(mixup, cutmix, data.num_classes) if mixup or cutmix else None,
            )
            done, total = len(history) * settings.batches, epochs * settings.batches
            with caller_keeps_its_state(), progress_bar(progress and processes.leads, done, total) as bar:
                for epoch in range(len(history) + 1, epochs + 1):
                    if stops_early(history, settings.metric, higher=task.higher, patience=patience):
                        break
                    filled = run.fill()  # at first
                    history.append(processes.agreed(runner.run(epoch, bar.step)))
                    history[-1]["seconds"] = round(history[-1]["seconds"] + filled, 3)
                    if best_of(history, settings.metric, higher=task.higher)["epoch"] == epoch:
                        with averages.in_place() if averages is not None else nullcontext():
                            folder.keep_best()
                    parts = {name: part.state_dict() for name, part in stateful.items()}
                    folder.keep_last({"settings": {**settings.as_dict(), **run.settings}, **parts}, history)
                    if on_epoch is not None and processes.leads and (text := on_epoch(history)):
                        bar.line(text)
    finally:
        # Takes off the wrapper for autocast, which cannot be pickled.
        accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        model.train(mode)
    processes.wait()
    folder.load_best()
    best = best_of(history, settings.metric, higher=task.higher)
    seconds = sum(entry["seconds"] for entry in history)
    value = best[f"validation_{settings.metric}"]
    return TrainResult(value, int(best["epoch"]), tuple(history), seconds, settings.metric, epochs)


def _check(model: nn.Module, data: Data, workers: int) -> None:
    if workers < 0:
        raise UtcError(f"workers is {workers}", fix="give 0 or more", code="train/settings")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UtcError(
            "the model has no trainable parameter",
            where=type(model).__name__,
            fix="insert tuners, or name what stays trainable under `train:` in the rules",
            code="train/model",
        )
    if not data.samples or not len(data.validation):  # type: ignore[arg-type]
        raise UtcError("there is nothing to train on", why=str(data), code="data/not-found")


def _accelerator(precision: str, cpu: bool) -> Accelerator:
    check_accelerate()
    check_launcher(precision)
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # accelerate keeps one state per process and would refuse another precision than the first.
    AcceleratorState._reset_state()
    found = Accelerator(mixed_precision=precision, cpu=cpu)
    if precision == "fp16" and found.device.type == "cpu":  # accelerate would train in float32 and say nothing
        raise UtcError(
            "fp16 is not possible on a CPU",
            fix="take bf16, which has the range of float32, or no",
            code="train/settings",
        )
    return found
