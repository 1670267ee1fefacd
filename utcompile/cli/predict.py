"""`utcompile predict`: what an exported file, or a run, says of images, arrays and texts."""

from __future__ import annotations

import csv as csv_module
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from utcompile.cli import output
from utcompile.cli.early_runs import check_inputs, check_new_folder, check_providers, check_source
from utcompile.cli.options import Json, OptionalModel, Providers, Trust, Weights, examples

if TYPE_CHECKING:
    from utcompile.cli.predict_tasks import Answer

EXAMPLES = examples(
    "utcompile predict model.onnx cat.jpg dog.jpg",
    "utcompile predict run/ cat.jpg --top 1 --json",
    "utcompile predict pets.onnx --task cats cat.jpg",
    "utcompile predict texts.onnx 'a fine film' 'a dull one' --csv",
    "utcompile predict scenes.onnx street.jpg --masks masks/",
)


def predict(
    source: Annotated[Path, typer.Argument(metavar="FILE|RUN", help="An ONNX file, or the folder of a run.")],
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Images, .npz or .npy arrays; texts, with a tokenizer.")
    ],
    task: Annotated[str | None, typer.Option(metavar="NAME", help="Of a file with several tasks.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 5,
    masks: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Of a segmentation: write a mask per image, a PNG of classes.")
    ] = None,
    providers: Providers = "cpu",
    csv: Annotated[bool, typer.Option("--csv", help="Write CSV to stdout.")] = False,
    model: OptionalModel = None,
    weights: Weights = None,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Predict classes with their probabilities, numbers, or masks, by the labels and preprocessing that are stored."""
    if csv and json:
        raise typer.BadParameter("give one of the two", param_hint="--csv, --json")
    check_source(source, model, weights, trust=trust)
    check_providers(providers)
    check_inputs(source, inputs)
    if masks is not None:
        check_new_folder(masks)
    from utcompile.cli.predict_tasks import answers, has_other_answers
    from utcompile.cli.predictors import predictor_of
    from utcompile.deploy import providers_named

    predictor = predictor_of(source, task, providers_named(providers), model, weights, trust)
    if has_other_answers(predictor.outputs):
        _show(list(answers(predictor, inputs, masks, top)), csv, json)
        return
    if masks is not None:
        raise typer.BadParameter("the model predicts classes, and no masks", param_hint="--masks")
    samples = list(predictor.ranked(inputs, top))
    found = [(name, label, p) for name, ranked in samples for label, p in ranked]
    if json:
        output.emit(
            [{"input": name, "top": [{"label": label, "probability": p} for label, p in r]} for name, r in samples]
        )
    elif csv:
        writer = csv_module.writer(sys.stdout)
        writer.writerow(["input", "label", "probability"])
        writer.writerows((name, label, f"{p:.6f}") for name, label, p in found)
    else:
        for name, label, p in found:
            output.say(f"{name}: {label} {p:.2%}")


def _show(found: list[Answer], csv: bool, json: bool) -> None:
    if json:
        output.emit([answer.as_dict() for answer in found])
    elif csv:
        writer = csv_module.writer(sys.stdout)
        writer.writerow(["input", "label", found[0].kind if found else "value", "mask"])
        writer.writerows((a.sample, name, f"{value:.9g}", a.mask or "") for a in found for name, value in a.values)
    else:
        for answer in found:
            for line in answer.lines():
                output.say(line)
