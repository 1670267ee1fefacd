"""`utcompile train`: compile, train, save."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, get_type_hints

import typer

from utcompile.cli import output
from utcompile.cli.complete import choices, complete_model, complete_override, complete_recipe, complete_rules
from utcompile.cli.early import check_packages, runs_code
from utcompile.cli.options import (
    Example,
    InputColumn,
    InputShapes,
    InputSize,
    Json,
    LabelColumns,
    NumClasses,
    Seed,
    TokenizerFolder,
    Trains,
    Trust,
    Var,
    Weights,
    Within,
    examples,
)
from utcompile.cli.recipe import chosen
from utcompile.cli.train_checks import TASKS, WORDS
from utcompile.cli.train_resume import refuse_settings, resume_run
from utcompile.cli.train_start import start_run

EXAMPLES = examples(
    "utcompile train -m timm:resnet50 -r lora/all_conv -d photos/ -o run/",
    "utcompile train -m timm:vit_base_patch16_224 -r u_tuning/dual -d data.npz -o run/ epochs=20 lr=5e-4",
    "utcompile train -m hf:bert/ -r lora/all_linear --task text -d reviews.csv -o run/",
    "utcompile train -m torchvision:deeplabv3_resnet50 -r lora/all_conv --task segment -d scenes/ -o run/",
    "utcompile train -m net.py:make -r lora/all_conv --within backbone --train module:head -d photos/ -o run/",
    "utcompile train --recipe mine.yaml -o run/",
    "utcompile train --resume -o run/",
)


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
        str | None, typer.Option("--task", help=f"{', '.join(TASKS)}.", autocompletion=choices(*TASKS))
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
            autocompletion=choices(*WORDS["schedule"]),
        ),
    ] = "cosine",
    warmup: Annotated[float, typer.Option(help="The share of all steps in which the rate rises.")] = 0.1,
    grad_clip: Annotated[float | None, typer.Option(help="The largest norm of all gradients together.")] = None,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches per step of the optimizer.")] = 1,
    label_smoothing: Annotated[float, typer.Option(help="A share from 0 to below 1.")] = 0.0,
    mixup: Annotated[float, typer.Option(min=0, help="Alpha of mixup: pairs of images are blended; 0 is off.")] = 0.0,
    cutmix: Annotated[
        float, typer.Option(min=0, help="Alpha of CutMix: a part of one image is put into another; 0 is off.")
    ] = 0.0,
    class_weights: Annotated[
        str,
        typer.Option(
            help="none, or balanced: rare classes weigh more in the loss.",
            autocompletion=choices(*WORDS["class_weights"]),
        ),
    ] = "none",
    patience: Annotated[int | None, typer.Option(min=1, help="Stop after so many epochs without a better one.")] = None,
    ema: Annotated[float | None, typer.Option(help="The decay of an average of the parameters, e.g. 0.99.")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="What is measured; the first one chooses the best epoch: accuracy, f1, auroc, iou, mae …"),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="no, bf16 or fp16: autocast.", autocompletion=choices(*WORDS["precision"]))
    ] = "no",
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or mps.", autocompletion=choices(*WORDS["device"]))
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
    input_column: InputColumn = None,
    label_column: LabelColumns = None,
    tokenizer: TokenizerFolder = None,
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
        refuse_settings(ctx)
        if out is None:
            raise typer.BadParameter("it is required", param_hint="--out")
        result = resume_run(ctx.params, out)
    else:
        values = chosen(ctx, get_type_hints(train), recipe, overrides or [], task)
        result, report = start_run(values), bool(values["report"])
        out = Path(result["run"])
    early = ", stopped early" if result["stopped_early"] else ""
    if not json:  # before the page, which takes a while
        output.say(f"{result['text']}{early}; saved in {out}")
    if report and output.leads():
        from utcompile.cli.run_report import report_of

        result["report"] = report_of(out, result["model"], Path(result["data"]))
    if json:
        output.emit({k: v for k, v in result.items() if k != "text"})
        return
    if result.get("report"):
        output.say(f"how it went: {result['report']}")
    run = shlex.quote(str(out))
    trusted = " --trust" * (runs_code(result["model"]) or result["task"] == "custom")
    output.say(f"next: utcompile evaluate {run}{trusted}, utcompile export {run} -o model.onnx{trusted}", "dim")
