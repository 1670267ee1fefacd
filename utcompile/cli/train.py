"""`utcompile train`: compile, train, save."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from utcompile.cli import output
from utcompile.cli.options import (
    InputSize,
    Json,
    NumClasses,
    Seed,
    Trains,
    Trust,
    Var,
    Weights,
    examples,
    size_of,
    trained,
    variables,
)
from utcompile.cli.watch import epoch_lines, log_lines
from utcompile.errors import UtcError

if TYPE_CHECKING:
    from utcompile.cli.models import ModelChoice
    from utcompile.rewrite import TunedModule

EXAMPLES = examples(
    "utcompile train -m timm:resnet50 -r lora/all_conv -d photos/ -o run/",
    "utcompile train -m timm:vit_base_patch16_224 -r u_tuning/dual -d data.npz -o run/",
    "utcompile train -m timm:resnet18 --weights mine.pth -r lora/all_conv --var r=4 -d photos/ -o run/",
    "utcompile train --resume -o run/",
)


def train(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="The folder to write.")],
    model: Annotated[str | None, typer.Option("--model", "-m", metavar="MODEL", help="The model; see below.")] = None,
    rules: Annotated[
        str | None, typer.Option("--rules", "-r", metavar="RULES", help="A rule file, or the name of shipped rules.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", "-d", metavar="DATA", help="A folder of class folders, or an .npz file.")
    ] = None,
    var: Var = None,
    train_: Trains = None,
    num_classes: NumClasses = None,
    weights: Weights = None,
    pretrained: Annotated[bool, typer.Option(help="Fetch the library's pretrained weights.")] = True,
    input_size: InputSize = None,
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    lr: Annotated[float, typer.Option(help="The highest learning rate.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(min=0)] = 1e-4,
    schedule: Annotated[str, typer.Option(help="cosine or onecycle.")] = "cosine",
    label_smoothing: Annotated[float, typer.Option(help="A share from 0 to below 1.")] = 0.0,
    seed: Seed = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read the data.")] = 0,
    augment: Annotated[
        bool, typer.Option("--augment", help="Random crops, flips and colours (image folders).")
    ] = False,
    cache: Annotated[
        str,
        typer.Option(
            "--cache",
            metavar="SIZE",
            help="The most memory for the results of frozen layers, computed once per image; or none. See Training.",
        ),
    ] = "4GB",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in RUN, with its settings; it takes --data, --model, --workers, --trust besides.",
        ),
    ] = False,
    report: Annotated[bool, typer.Option(help="Write RUN/report.html at the end.")] = True,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Insert tuners into a frozen model, train them, and save them as a run."""
    from utcompile.cli.models import ModelChoice
    from utcompile.cli.runs import choice_of, rules_of
    from utcompile.rewrite import MANIFEST, read_manifest
    from utcompile.rules import RuleSet
    from utcompile.train.needs import check_accelerate

    check_accelerate()  # before anything is built, loaded or captured
    settings: dict[str, object] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "label_smoothing": label_smoothing,
        "seed": seed,
        "workers": workers,
    }
    if resume:
        _refuse_settings(ctx)
        manifest = read_manifest(out)
        training = manifest.get("training")
        wanted = {*settings, "augment"} - {"workers"}
        if not isinstance(training, dict) or training.keys() != wanted or not isinstance(manifest.get("data"), str):
            raise UtcError(
                "the manifest does not say how the run was trained",
                where=str(out / MANIFEST),
                code="checkpoint/damaged",
            )
        choice, ruleset = choice_of(out, manifest, model, trust), rules_of(out, manifest)
        path = data or Path(manifest["data"])
        settings = {**training, "workers": workers}
        augment = bool(settings.pop("augment"))
    else:
        missing = [name for name, value in (("--model", model), ("--rules", rules), ("--data", data)) if value is None]
        if missing or model is None or rules is None or data is None:
            raise typer.BadParameter("it is required, unless --resume is given", param_hint=", ".join(missing))
        size = size_of(input_size)
        ruleset, path = RuleSet.load(rules, vars=variables(var), train=trained(train_)), data
        choice = ModelChoice(model, num_classes, str(weights) if weights else None, pretrained, seed, size)
    prefix_cache = None if cache == "none" or not output.is_alone() else cache
    result = train_run(choice, ruleset, path, out, settings, augment=augment, resume=resume, prefix_cache=prefix_cache)
    report &= output.leads()
    if report:
        from utcompile.cli.run_report import write_report

        result["report"] = write_report(out, model=choice.spec, data=path)["page"]
    if json:
        output.emit(result)
    else:
        output.say(
            f"best validation accuracy {result['best_accuracy']:.2%} in epoch {result['best_epoch']}, "
            f"{result['seconds']:.0f} s; saved in {out}"
        )
        if report:
            output.say(f"how it went: {result['report']}")
        output.say(f"next: utcompile export {out} -o model.onnx", "dim")


def _refuse_settings(ctx: typer.Context) -> None:
    """A run goes on with its own settings; one that is given would be ignored in silence."""
    free = {"out", "resume", "model", "data", "workers", "report", "trust", "json", "cache"}
    for option in ctx.command.params:
        name = option.name or ""
        source = ctx.get_parameter_source(name)
        if name not in free and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter("a run is resumed with its own settings", param_hint=option.opts[0])


def train_run(
    choice: ModelChoice,
    rules: Any,
    data_path: Path,
    out: Path,
    settings: dict[str, Any],
    *,
    augment: bool = False,
    resume: bool = False,
    recorded_data: Path | None = None,
    prefix_cache: str | None = None,
) -> dict[str, Any]:
    """Compile, train and save; returns what happened as plain data.

    Args:
        rules: a `RuleSet` or what makes one.
        settings: arguments of `fit`.
        recorded_data: where the manifest says the data lies, if that is not where it lies now.
        prefix_cache: as for `fit`; not used where images are augmented.
    """
    from dataclasses import asdict, replace

    import torch

    import utcompile as utc
    from utcompile.train import fit, load_data

    preset = choice.preset()
    data = load_data(data_path, **asdict(preset), seed=settings["seed"], augment=augment)
    if choice.num_classes is None and not choice.source.runs_code:
        choice = replace(choice, num_classes=data.num_classes)
    output.progress(f"{data}, {'x'.join(map(str, preset.input_size))}")
    model, example = choice.build(), choice.example()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(choice.seed)
        tuned = utc.compile(model, rules, (example,))
    output.progress(summary(tuned))
    extra = {
        "model": choice.as_dict(),
        "data": str((recorded_data or data_path).resolve()),
        "classes": list(data.class_names),
        "training": {**{k: v for k, v in settings.items() if k != "workers"}, "augment": augment},
    }
    with epoch_lines(out, settings["epochs"]), log_lines("utcompile.train.prefix_cache"):
        save = partial(utc.save_tuners, tuned, extra=extra)
        result = fit(
            tuned,
            data,
            out=out,
            save=save,
            load=partial(utc.load_tuners, tuned),
            resume=resume,
            channels_last=True,
            prefix_cache=None if augment else prefix_cache,
            **settings,
        )
    trained, every = tuned.trainable_parameters()
    return {
        "run": str(out),
        "best_accuracy": result.best_accuracy,
        "best_epoch": result.best_epoch,
        "seconds": result.seconds,
        "sites": len(tuned.sites),
        "trainable_parameters": trained,
        "parameters": every,
        "history": list(result.history),
    }


def summary(tuned: TunedModule) -> str:
    """`41 sites (9 block, 32 pointwise), 259,530 of 3,640,000 parameters to train`."""
    counts = ", ".join(f"{n} {rule}" for rule, n in Counter(s.rule for s in tuned.sites).items())
    trained, every = tuned.trainable_parameters()
    return f"{len(tuned.sites)} sites ({counts}), {trained:,} of {every:,} parameters to train"
