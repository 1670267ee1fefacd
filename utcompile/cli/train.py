"""`utcompile train`: compile, train, save."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from utcompile.cli import output
from utcompile.cli.complete import choices, complete_model, complete_override, complete_recipe, complete_rules
from utcompile.cli.early import check_data, check_model, check_new_run, check_packages, check_rules, check_tensorboard
from utcompile.cli.options import (
    Example,
    InputShapes,
    InputSize,
    Json,
    NumClasses,
    Seed,
    Trains,
    Trust,
    Var,
    Weights,
    Within,
    examples,
    given,
    size_of,
    trained,
    variables,
)
from utcompile.cli.recipe import chosen
from utcompile.cli.training import CODE, READING, is_function, train_run
from utcompile.errors import UtcError

__all__ = ["EXAMPLES", "train", "train_run"]

EXAMPLES = examples(
    "utcompile train -m timm:resnet50 -r lora/all_conv -d photos/ -o run/",
    "utcompile train -m timm:vit_base_patch16_224 -r u_tuning/dual -d data.npz -o run/ epochs=20 lr=5e-4",
    "utcompile train -m hf:bert/ -r lora/all_linear --task text -d reviews.csv -o run/",
    "utcompile train -m torchvision:deeplabv3_resnet50 -r lora/all_conv --task segment -d scenes/ -o run/",
    "utcompile train -m net.py:make -r lora/all_conv --within backbone --train module:head -d photos/ -o run/",
    "utcompile train --recipe mine.yaml -o run/",
    "utcompile train --resume -o run/",
)
_TASKS = ("classify", "multilabel", "regress", "segment", "text", "custom")
_FITTING = (
    "epochs batch_size lr weight_decay schedule warmup label_smoothing grad_clip optimizer accumulate patience ema "
    "class_weights precision seed workers"
).split()
_SINCE_FIRST = frozenset("epochs batch_size lr weight_decay schedule label_smoothing seed augment".split())


def train(
    ctx: typer.Context,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]…", help="Options as in a recipe; a flag wins.", autocompletion=complete_override
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="RUN", help="The folder to write.")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="MODEL", help="The model; see below.", autocompletion=complete_model),
    ] = None,
    rules: Annotated[
        str | None,
        typer.Option(
            "--rules",
            "-r",
            metavar="RULES",
            help="A rule file, or the name of shipped rules.",
            autocompletion=complete_rules,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "-d",
            metavar="DATA",
            help="A folder, a table (.csv .tsv .jsonl), an .npz file, or file.py:function.",
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help=f"{', '.join(_TASKS)}.", autocompletion=choices(*_TASKS))
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="RECIPE",
            help="A YAML file of options, or a shipped one; the task's own by default.",
            autocompletion=complete_recipe,
        ),
    ] = None,
    var: Var = None,
    within: Within = None,
    train_: Trains = None,
    num_classes: NumClasses = None,
    weights: Weights = None,
    pretrained: Annotated[bool, typer.Option(help="Fetch the library's pretrained weights.")] = True,
    input_size: InputSize = None,
    example: Example = None,
    input_shapes: InputShapes = None,
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    lr: Annotated[float, typer.Option(help="The highest learning rate.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(min=0, help="Of matrices.")] = 1e-4,
    rate: Annotated[
        list[str] | None,
        typer.Option(metavar="RULE=LR", help="The learning rate of one rule's tuners; train=LR for the head."),
    ] = None,
    decay: Annotated[
        list[str] | None, typer.Option(metavar="RULE=DECAY", help="The weight decay of one rule's tuners.")
    ] = None,
    optimizer: Annotated[
        str,
        typer.Option(
            help="A name of timm's: adamw, sgd, lion, lamb …",
            autocompletion=choices("adamw", "adam", "sgd", "lion", "lamb", "nadamw", "adopt", "muon"),
        ),
    ] = "adamw",
    schedule: Annotated[
        str,
        typer.Option(
            help="cosine, onecycle, linear, poly, step or constant.",
            autocompletion=choices("cosine", "onecycle", "linear", "poly", "step", "constant"),
        ),
    ] = "cosine",
    warmup: Annotated[float, typer.Option(help="The share of all steps in which the rate rises.")] = 0.1,
    grad_clip: Annotated[float | None, typer.Option(help="The largest norm of all gradients together.")] = None,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches per step of the optimizer.")] = 1,
    label_smoothing: Annotated[float, typer.Option(help="A share from 0 to below 1.")] = 0.0,
    class_weights: Annotated[
        str,
        typer.Option(
            help="none, or balanced: rare classes weigh more in the loss.", autocompletion=choices("none", "balanced")
        ),
    ] = "none",
    patience: Annotated[int | None, typer.Option(min=1, help="Stop after so many epochs without a better one.")] = None,
    ema: Annotated[float | None, typer.Option(help="The decay of an average of the parameters, e.g. 0.99.")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="What is measured; the first one chooses the best epoch: accuracy, f1, auroc, iou, mae …"),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="no, bf16 or fp16: autocast.", autocompletion=choices("no", "bf16", "fp16"))
    ] = "no",
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or mps.", autocompletion=choices("auto", "cpu", "cuda", "mps"))
    ] = "auto",
    seed: Seed = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read the data.")] = 0,
    augment: Annotated[
        bool | None,
        typer.Option(
            "--augment/--no-augment",
            help="Random crops, flips and colours; by default of image files, and not of arrays.",
        ),
    ] = None,
    policy: Annotated[
        str | None, typer.Option(metavar="POLICY", help="timm's augmentation, e.g. rand-m9-mstd0.5-inc1.")
    ] = None,
    input_column: Annotated[str | None, typer.Option(metavar="NAME", help="Of a table: the path or the text.")] = None,
    label_column: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Of a table: the label; several for labels of 0 and 1.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="DIR", help="The local folder of a tokenizer; of an hf: model, its own.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Of texts, in tokens; 128, or fewer where the model takes fewer.")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(metavar="FILE.py:NAME", help="Of a custom task: loss(output, target).")
    ] = None,
    metrics_function: Annotated[
        str | None,
        typer.Option(metavar="FILE.py:NAME", help="Of a custom task: metrics(outputs, targets) returns a dict."),
    ] = None,
    lower_is_better: Annotated[
        bool, typer.Option("--lower-is-better", help="Of the first metric of a custom task.")
    ] = False,
    check: Annotated[bool, typer.Option(help="Decode every image before training.")] = True,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out samples that cannot be read or have no label.")
    ] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write RUN/tensorboard, too.")] = False,
    cache: Annotated[
        str,
        typer.Option(
            "--cache",
            metavar="SIZE",
            help="The most memory for the results of frozen layers, computed once per sample; or none. See Training.",
        ),
    ] = "4GB",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in RUN, with its settings; it takes --data, --model, --workers, --device, --trust "
            "besides.",
        ),
    ] = False,
    report: Annotated[bool, typer.Option(help="Write RUN/report.html at the end.")] = True,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Insert tuners into a frozen model, train them, and save them as a run.

    An option's value is its default, then the recipe's, then KEY=VALUE, then the flag's. RUN gets the best epoch's
    tuners, manifest.json, task.json, history.jsonl, metrics.csv, and last/, from which --resume continues.
    """
    check_packages()  # before anything is imported, built, loaded or captured
    if resume:
        _refuse_settings(ctx)
        if out is None:
            raise typer.BadParameter("it is required", param_hint="--out")
        result = _resume(ctx, out)
    else:
        values = chosen(ctx, get_type_hints(train), recipe, overrides or [], task)
        result, report = _start(values), values["report"]
        out = Path(result["run"])
    report &= output.leads()
    if report:
        from utcompile.cli.run_report import report_of

        result["report"] = report_of(out, result["model"], Path(result["data"]))
    if json:
        output.emit({k: v for k, v in result.items() if k != "text"})
        return
    early = ", stopped early" if result["stopped_early"] else ""
    output.say(f"{result['text']}{early}; saved in {out}")
    if result.get("report"):
        output.say(f"how it went: {result['report']}")
    output.say(f"next: utcompile evaluate {out}, utcompile export {out} -o model.onnx", "dim")


def _start(values: dict[str, Any]) -> dict[str, Any]:
    names = {"model": "--model", "rules": "--rules", "data": "--data", "out": "--out"}
    missing = [flag for name, flag in names.items() if values[name] is None]
    if missing:
        raise typer.BadParameter("it is required, unless --resume is given", param_hint=", ".join(missing))
    task = values["task"] or "classify"
    out, path = Path(values["out"]), _absolute(Path(values["data"]))
    check_new_run(out)
    check_model(values["model"])
    check_rules(values["rules"])
    check_data(path, task)
    if values["tensorboard"]:
        check_tensorboard()
    settings = _settings(values)
    reading = {key: _plain(values[key]) for key in READING if key != "task"} | {"task": task}
    for key in CODE:
        reading[key] = reading[key] and str(_absolute(Path(reading[key])))
    augment = values["policy"] or values["augment"]

    from utcompile.cli.hf import with_head
    from utcompile.cli.models import ModelChoice
    from utcompile.rules import RuleSet

    ruleset = RuleSet.load(values["rules"], vars=variables(values["var"]), train=trained(values["train_"]))
    weights = values["weights"]
    choice = ModelChoice(
        with_head(values["model"], task),
        values["num_classes"],
        str(weights) if weights else None,
        values["pretrained"],
        values["seed"],
        size_of(values["input_size"]),
        **given(values["example"], values["input_shapes"]),
        within=tuple(values["within"] or ()),
    )
    with going_on(out):
        cache = _cache(values["cache"])
        return train_run(choice, ruleset, path, out, settings, augment=augment, reading=reading, prefix_cache=cache)


def _resume(ctx: typer.Context, out: Path) -> dict[str, Any]:
    from utcompile.cli.models import ModelChoice
    from utcompile.cli.runs import choice_of, rules_of
    from utcompile.rewrite import MANIFEST, read_manifest

    given_now = ctx.params
    manifest = read_manifest(out)
    training = manifest.get("training")
    known = {*_FITTING, "metrics", "rates", "decays", "cpu", "augment", *READING} - {"workers"}
    if (
        not isinstance(training, dict)
        or not _SINCE_FIRST <= training.keys() <= known
        or not isinstance(manifest.get("data"), str)
    ):
        raise UtcError(
            "the manifest does not say how the run was trained", where=str(out / MANIFEST), code="checkpoint/damaged"
        )
    path = given_now["data"] or Path(manifest["data"])
    named = [training[key] for key in CODE if training.get(key)] + ([str(path)] if is_function(path) else [])
    if named and not (given_now["trust"] or (given_now["data"] is not None and not any(map(training.get, CODE)))):
        raise UtcError(
            "resuming this run would run code",
            where=str(out / MANIFEST),
            why=f"the manifest names {', '.join(map(str, named))}",
            fix="say --trust if you know where the run comes from",
            code="model/trust",
        )
    choice: ModelChoice = choice_of(out, manifest, given_now["model"], given_now["trust"])
    reading = {key: training.get(key, default) for key, default in READING.items()}
    settings = {k: v for k, v in training.items() if k not in READING and k != "augment"}
    settings["workers"] = given_now["workers"]
    if given_now["device"] != "auto":
        settings["cpu"] = given_now["device"] == "cpu"
    with going_on(out):
        rules = rules_of(out, manifest)
        return train_run(
            choice,
            rules,
            path,
            out,
            settings,
            augment=training["augment"],
            resume=True,
            reading=reading,
            prefix_cache=_cache(given_now["cache"]),
        )


def _cache(size: str) -> str | None:
    return None if size == "none" or not output.is_alone() else size


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `fit`."""
    settings = {key: values[key] for key in _FITTING}
    settings["metrics"] = list(values["metric"] or ())
    settings["rates"] = _numbers(values["rate"], "--rate")
    settings["decays"] = _numbers(values["decay"], "--decay")
    settings["cpu"] = _on_cpu(values["device"])
    return settings


def _on_cpu(device: str) -> bool:
    if device not in ("auto", "cpu", "cuda", "mps"):
        from utcompile.errors import did_you_mean

        raise UtcError(
            f"unknown device {device!r}",
            fix=did_you_mean(device, ("auto", "cpu", "cuda", "mps")) + "; CUDA_VISIBLE_DEVICES chooses among several",
            code="train/settings",
        )
    if device in ("cuda", "mps"):
        import torch

        backend: Any = torch.cuda if device == "cuda" else torch.backends.mps
        if not backend.is_available():
            raise UtcError(
                f"there is no {device} device here", fix="leave out --device, or give cpu", code="train/settings"
            )
    return device == "cpu"


def _numbers(texts: list[str] | None, option: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise UtcError(
                f"{text!r} is not RULE=NUMBER", where=option, fix="write e.g. train=1e-2", code="train/settings"
            )
        found[name] = number
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _absolute(path: Path) -> Path:
    """`file.py:function` with the file's whole path; other paths as they are."""
    if not is_function(path):
        return path
    file, _, name = str(path).rpartition(":")
    return Path(f"{Path(file).resolve()}:{name}")


@contextmanager
def going_on(out: Path) -> Iterator[None]:
    """On Ctrl-C says how the run is continued."""
    try:
        yield
    except KeyboardInterrupt:
        if (out / "last").is_dir():
            output.progress(f"go on with: utcompile train --resume -o {out}")
        else:
            output.progress("nothing was saved: the first epoch was not complete")
        raise


def _refuse_settings(ctx: typer.Context) -> None:
    """A run goes on with its own settings; one that is given would be ignored in silence."""
    free = {"out", "resume", "model", "data", "workers", "device", "cache", "report", "trust", "json"}
    for option in ctx.command.params:
        name = option.name or ""
        source = ctx.get_parameter_source(name)
        given_now = source is not None and source.name == "COMMANDLINE" and ctx.params.get(name) not in (None, [])
        if name not in free and given_now:
            raise typer.BadParameter("a run is resumed with its own settings", param_hint=option.opts[0])
