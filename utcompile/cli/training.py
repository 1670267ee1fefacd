"""What `utcompile train` does: read the data, build the model, compile, train, save."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from utcompile.cli import output
from utcompile.cli.train_data import READING, Reading, augmented, example_of_data, is_function, read_data, task_of
from utcompile.cli.train_lines import reporter, size_of, summary
from utcompile.cli.train_texts import fitted
from utcompile.cli.watch import log_lines
from utcompile.plain_data import JsonObject

if TYPE_CHECKING:
    from utcompile.cli.models import ModelChoice
    from utcompile.rules import RuleSet


def train_run(
    choice: ModelChoice,
    rules: RuleSet,
    data_path: Path,
    out: Path,
    settings: JsonObject,
    *,
    augment: bool | str | None = None,
    resume: bool = False,
    recorded_data: Path | None = None,
    reading: Reading | None = None,
    prefix_cache: str | None = None,
) -> JsonObject:
    """Compile, train and save; returns what happened as plain data.

    Args:
        rules: what is inserted.
        settings: arguments of `fit`.
        augment: random changes of images; None for those of image files in classification, and none elsewhere.
        recorded_data: where the manifest says the data lies, if that is not where it lies now.
        reading: of `READING`, what differs.
        prefix_cache: as for `fit`; not used where images are augmented.
    """
    from dataclasses import replace

    import torch

    import utcompile as utc
    from utcompile.cli.parts import plan_of
    from utcompile.rewrite import Whole, read_manifest, trainable_parameters
    from utcompile.train import fit
    from utcompile.train.held_out import check_held_out, held_out
    from utcompile.train.task_file import TaskFile

    reading = {**READING, **(reading or {})}
    data, tokenizer = read_data(choice, data_path, reading, settings["seed"], augment, out if resume else None)
    if choice.num_classes is None and data.num_classes and choice.source.takes_num_classes():
        choice = replace(choice, num_classes=data.num_classes)
    if resume:
        check_held_out(data, read_manifest(out), str(data_path))
    output.progress(f"{data}{size_of(choice, data)}")
    task = task_of(data, reading, settings)
    model = choice.build()
    if tokenizer is not None:
        data = fitted(data, model, tokenizer, choice.spec)
    example = example_of_data(choice, data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(choice.seed)
        tuned = plan_of(model, example, rules, choice.within).apply()
    output.progress(summary(tuned))
    recorded = recorded_data or data_path
    kept = {k: v for k, v in settings.items() if k != "workers"}
    extra = {
        "model": choice.as_dict(),
        "data": str(recorded) if is_function(recorded) else str(recorded.resolve()),
        "classes": list(data.class_names),
        **held_out(data, settings["seed"]),
        "training": {**kept, "augment": augment, **{k: reading[k] for k in READING}},
    }

    def prepare(folder: Path) -> None:
        TaskFile.of(data, task).write(folder)
        if tokenizer is not None:
            from utcompile.train.task_file import TOKENIZER

            tokenizer.save_pretrained(str(folder / TOKENIZER))

    fitting = {k: v for k, v in settings.items() if k != "metrics"}
    mixed = settings.get("mixup") or settings.get("cutmix")
    is_uncached = data.task == "text" or mixed or augmented(augment, reading, data_path) or choice.within
    cached = None if is_uncached else prefix_cache
    with log_lines("utcompile.train.prefix_cache") if cached else nullcontext():
        result = fit(
            tuned,
            data,
            out=out,
            save=partial(utc.save_tuners, tuned, extra=extra),
            load=partial(utc.load_tuners, tuned),
            resume=resume,
            channels_last=True,
            prefix_cache=cached,
            task=task,
            prepare=prepare,
            on_epoch=reporter(out, settings["epochs"], bool(reading["tensorboard"])),
            **fitting,
        )
    trained, every = trainable_parameters(tuned)
    accuracy = {"best_accuracy": result.best_accuracy} if "validation_accuracy" in result.history[0] else {}
    return {
        "run": str(out),
        "model": choice.spec,
        "data": str(recorded),
        "task": task.name,
        "metric": result.metric,
        "best": result.best,
        **accuracy,
        "best_epoch": result.best_epoch,
        "stopped_early": len(result.history) < result.epochs,
        "seconds": result.seconds,
        "sites": len(Whole.of(tuned, "train").sites),
        "trainable_parameters": trained,
        "parameters": every,
        "history": list(result.history),
        "text": str(result),
    }
