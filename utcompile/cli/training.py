"""What `utcompile train` does: read the data, build the model, compile, train, save."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utcompile.cli import output
from utcompile.cli.watch import log_lines
from utcompile.errors import UtcError

if TYPE_CHECKING:
    from torch import nn

    from utcompile.cli.models import ModelChoice
    from utcompile.rules import RuleSet
    from utcompile.train import Data
    from utcompile.train.tasks import Task

METRICS_CSV = "metrics.csv"
# Options that say how data are read and what is measured; the others are arguments of `fit`.
READING: Mapping[str, Any] = {
    "task": "classify",
    "input_column": None,
    "label_column": [],
    "tokenizer": None,
    "max_length": None,
    "check": True,
    "skip_bad": False,
    "loss": None,
    "metrics_function": None,
    "lower_is_better": False,
    "tensorboard": False,
}
_LENGTH = 128  # tokens of a text, by default
CODE = ("loss", "metrics_function")  # which name functions of a user's files


def train_run(
    choice: ModelChoice,
    rules: RuleSet,
    data_path: Path,
    out: Path,
    settings: dict[str, Any],
    *,
    augment: bool | str | None = None,
    resume: bool = False,
    recorded_data: Path | None = None,
    reading: Mapping[str, Any] | None = None,
    prefix_cache: str | None = None,
) -> dict[str, Any]:
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
    from utcompile.rewrite import Whole, trainable_parameters
    from utcompile.train import fit
    from utcompile.train.task_file import TaskFile

    reading = {**READING, **(reading or {})}
    data, tokenizer = read_data(choice, data_path, reading, settings["seed"], augment, out if resume else None)
    if choice.num_classes is None and data.num_classes and choice.source.takes_num_classes():
        choice = replace(choice, num_classes=data.num_classes)
    output.progress(f"{data}{_size_of(choice, data)}")
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
        "training": {**kept, "augment": augment, **{k: reading[k] for k in READING}},
    }

    def prepare(folder: Path) -> None:
        TaskFile.of(data, task).write(folder)
        if tokenizer is not None:
            from utcompile.train.task_file import TOKENIZER

            tokenizer.save_pretrained(str(folder / TOKENIZER))

    fitting = {k: v for k, v in settings.items() if k != "metrics"}
    is_uncached = data.task == "text" or augmented(augment, reading, data_path) or choice.within
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
            on_epoch=_reporter(out, settings["epochs"], bool(reading["tensorboard"])),
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


def read_data(
    choice: ModelChoice,
    path: Path,
    reading: Mapping[str, Any],
    seed: int,
    augment: bool | str | None,
    run: Path | None = None,
    *,
    measured: bool = False,
) -> tuple[Data, Any]:
    """The data, and the tokenizer of a text task.

    Args:
        measured: as for `load_data`.
        run: a run's folder, whose tokenizer is taken.
    """
    from dataclasses import asdict

    from utcompile.cli.user_code import called, function_of
    from utcompile.train import load_data
    from utcompile.train.own_data import data_of

    if is_function(path):
        return data_of(
            called(function_of(str(path), "data"), str(path), "data function"), reading["task"], str(path)
        ), None
    tokenizer = _tokenizer(choice, reading, run) if reading["task"] == "text" else None
    augment = augmented(augment, reading, path)
    if reading["check"] and reading["task"] != "text" and path.suffix != ".npz":
        output.progress("checking that every image can be read (--no-check leaves this out)")
    data = load_data(
        path,
        **asdict(choice.preset()),
        seed=seed,
        augment=augment,
        task=reading["task"],
        input_column=reading["input_column"],
        label_columns=tuple(reading["label_column"] or ()),
        tokenizer=tokenizer,
        max_length=reading["max_length"] or _usual_length(choice),
        check=bool(reading["check"]),
        skip_bad=bool(reading["skip_bad"]),
        measured=measured,
    )
    return data, tokenizer


def augmented(augment: bool | str | None, reading: Mapping[str, Any], path: Path) -> bool | str:
    """Whether images are changed at random; by default those of files, because flips and crops suit photographs."""
    if augment is not None:
        return augment
    return reading["task"] not in ("text", "custom") and path.suffix != ".npz" and not is_function(path)


def _usual_length(choice: ModelChoice) -> int:
    from utcompile.cli.hf import HuggingFace

    source = choice.source
    limit = source.config.get("max_position_embeddings") if isinstance(source, HuggingFace) else None
    return min(_LENGTH, limit) if isinstance(limit, int) and limit > 0 else _LENGTH


def _tokenizer(choice: ModelChoice, reading: Mapping[str, Any], run: Path | None) -> Any:
    from utcompile.cli.hf import HuggingFace
    from utcompile.train.task_file import TOKENIZER
    from utcompile.train.texts import read_tokenizer

    folder = reading["tokenizer"]
    if run is not None and (run / TOKENIZER).is_dir():
        folder = run / TOKENIZER
    if folder is None and isinstance(choice.source, HuggingFace):
        folder = choice.source.folder
    if folder is None:
        raise UtcError(
            "texts need a tokenizer", fix="give the local folder of one: --tokenizer DIR", code="data/tokenizer"
        )
    return read_tokenizer(folder)


def fitted(data: Data, model: nn.Module, tokenizer: Any, spec: str) -> Data:
    """The data with those arrays that the model's forward takes.

    Raises:
        UtcError: the tokenizer has more tokens than the model has embeddings, longer texts than it has positions, or
            the model takes none of its arrays.
    """
    import inspect
    from dataclasses import replace

    from torch import nn

    embed: Any = getattr(model, "get_input_embeddings", lambda: None)()
    rows = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    most = getattr(embed, "num_embeddings", max(rows, default=None))
    if most is not None and len(tokenizer) > most:
        raise UtcError(
            "the tokenizer does not fit the model",
            where=spec,
            why=f"it has {len(tokenizer):,} tokens, the model embeddings for {most:,}",
            fix="give the tokenizer that the model was trained with: --tokenizer DIR",
            code="data/tokenizer",
        )
    limit, length = (
        getattr(getattr(model, "config", None), "max_position_embeddings", None),
        data.preprocessing["max_length"],
    )
    if isinstance(limit, int) and isinstance(length, int) and 0 < limit < length:
        raise UtcError(
            f"texts of {length} tokens are too long for the model",
            where=spec,
            why=f"it has {limit} positions",
            fix=f"give max_length={limit} or less",
            code="data/tokenizer",
        )
    taken = inspect.signature(model.forward).parameters
    made: Any = data.preprocessing["inputs"]
    names = [name for name in made if name in taken]
    if not names:
        raise UtcError(
            "the model takes none of the tokenizer's arrays",
            where=spec,
            why=f"the tokenizer makes {', '.join(made)}, forward takes {', '.join(taken)}",
            fix="name the parameters of forward as the tokenizer names its arrays",
            code="data/tokenizer",
        )
    data.train.tokens.inputs = tuple(names)  # type: ignore[attr-defined]  # one object for both datasets
    return replace(data, preprocessing={**data.preprocessing, "inputs": names})


def example_of_data(choice: ModelChoice, data: Data) -> Any:
    """Example inputs of the model for a task: the user's, images, or two samples of the data."""
    from torch.utils.data import default_collate

    if choice.example_from is not None or choice.sizes:
        return choice.inputs()
    if data.task == "text":
        tokens: Any = data.train.tokens  # type: ignore[attr-defined]
        length = min(32, tokens.max_length)
        found = tokens.tokenizer(
            ["a", "b"], padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return {name: found[name] for name in tokens.inputs}
    if data.task == "custom":
        batch: Any = (data.collate or default_collate)([data.train[i % data.samples] for i in (0, 1)])
        inputs = batch[0]
        return inputs if isinstance(inputs, Mapping) else tuple(inputs) if isinstance(inputs, list) else (inputs,)
    return (choice.example(),)


def task_of(data: Data, reading: Mapping[str, Any], settings: Mapping[str, Any]) -> Task:
    """The loss and the metrics of a run."""
    from utcompile.cli.user_code import function_of
    from utcompile.train import make_task

    loss, measure = (reading[key] and function_of(reading[key], key.replace("_", " ")) for key in CODE)
    return make_task(
        data,
        metrics=settings.get("metrics") or (),
        label_smoothing=settings.get("label_smoothing", 0.0),
        class_weights=settings.get("class_weights", "none"),
        loss=loss,
        measure=measure,
        higher=not reading["lower_is_better"],
    )


def is_function(path: Path) -> bool:
    """Whether data comes from `file.py:function`."""
    return ".py:" in str(path)


def _size_of(choice: ModelChoice, data: Data) -> str:
    if data.task == "text":
        return f", at most {data.preprocessing['max_length']} tokens"
    return "" if data.task == "custom" else f", {'x'.join(map(str, choice.preset().input_size))}"


def _reporter(out: Path, epochs: int, tensorboard: bool) -> Callable[[Sequence[dict[str, float]]], str]:
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
