"""The options that several verbs share, and how their texts are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from utcompile.cli.complete import complete_model, complete_rules
from utcompile.errors import UtcError
from utcompile.plain_data import JsonObject

_WHOLE = ("ids", "mask", "type", "position", "label")  # in the name of an input that has whole numbers
SPECS = "timm:NAME, torchvision:NAME, hf:DIR, package.module:factory, file.py:factory or demo:efficientnet_lite0"


def examples(*lines: str) -> str:
    """The examples of a verb, and what a MODEL is where it takes one, for the end of its help."""
    told = [f"MODEL is {SPECS}. A factory is a function that returns an nn.Module."] if "-m " in "".join(lines) else []
    return "\n\n".join(("Examples:", *(f"$ {line}" for line in lines), *told))


def size_of(text: str | None) -> tuple[int, ...] | None:
    """`160` or `3,160,160`; a lone height stands for a square of the model's own channels."""
    if text is None:
        return None
    sizes = _integers(text)
    if len(sizes) not in (1, 3):
        raise typer.BadParameter(
            f"{text!r} is no size; give H or C,H,W, e.g. 160 or 3,160,160", param_hint="--input-size"
        )
    return sizes


def batches_of(text: str | None) -> tuple[int, ...] | None:
    """`1,3,8`; None where nothing is given."""
    if text is None:
        return None
    sizes = _integers(text)
    if not sizes:
        raise typer.BadParameter(f"{text!r} is no list of batch sizes; give e.g. 1,3,8", param_hint="--batch-sizes")
    return sizes


def tasks_of(given: list[str] | None) -> dict[str, Path]:
    """`NAME=RUN` texts; no name may come twice."""
    found: dict[str, Path] = {}
    for text in given or []:
        name, equals, folder = text.partition("=")
        if not equals or not name or not folder:
            raise typer.BadParameter(f"{text!r} is not NAME=RUN", param_hint="--task")
        if name in found:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint="--task")
        found[name] = Path(folder)
    return found


def numbers_of(text: str, option: str) -> tuple[int, ...]:
    """`1,8`: positive integers."""
    found = _integers(text)
    if not found:
        raise typer.BadParameter(f"{text!r} is no list of positive numbers; give e.g. 1,8", param_hint=option)
    return found


def given(example: str | None, shapes: list[str] | None) -> JsonObject:
    """`--example` and `--input` as fields of a `ModelChoice`."""
    if example is not None and shapes:
        raise typer.BadParameter("--example has the inputs already", param_hint="--input")
    return {"example_from": example, "sizes": tuple(shapes or ())}


def shapes_of(texts: Sequence[str]) -> dict[str, JsonObject]:
    """`input_ids=2,16` and `x=2,3,64,64:float16` as entries with a shape and a dtype: whole numbers for ids and masks.

    Raises:
        UtcError: a text is no name with sizes.
    """
    entries: dict[str, JsonObject] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        numbers, _, dtype = rest.partition(":")
        shape = _integers(numbers)
        if not equals or not name.isidentifier() or not shape or name in entries:
            raise UtcError(
                f"{text!r} is no size of an input",
                fix="write NAME=SIZES, once per input, e.g. input_ids=2,16 or x=2,3,64,64:float32",
                code="capture/inputs",
            )
        whole = any(word in name for word in _WHOLE)
        entries[name] = {"shape": list(shape), "dtype": dtype or ("int64" if whole else "float32")}
    return entries


def _integers(text: str) -> tuple[int, ...]:
    """Positive integers between commas; none where one is not."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        return ()
    return found if all(number > 0 for number in found) else ()


def variables(given: list[str] | None) -> dict[str, object]:
    """`key=value` texts; values are YAML 1.2, so `4` is a number and `[q, v]` a list."""
    texts = pairs_of(given)
    from utcompile.rules.yaml12 import load

    return {key: load(value, f"--var {key}").data for key, value in texts.items()}


def pairs_of(given: list[str] | None, option: str = "--var") -> dict[str, str]:
    """`key=value` texts; no key may come twice."""
    found: dict[str, str] = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise typer.BadParameter(f"{text!r} is not key=value", param_hint=option)
        if key in found:
            raise typer.BadParameter(f"{key!r} is given twice", param_hint=option)
        found[key] = value
    return found


def trained(given: list[str] | None) -> list[str] | None:
    """The lines of `--train`; an empty list for `none`, None where nothing is given."""
    if given and "none" in given:
        if len(given) > 1:
            raise typer.BadParameter("'none' stands alone", param_hint="--train")
        return []
    return given or None


Model = Annotated[
    str, typer.Option("--model", "-m", metavar="MODEL", help="The model; see below.", autocompletion=complete_model)
]
OptionalModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="The model, instead of the run's; see below.",
        autocompletion=complete_model,
    ),
]
Rules = Annotated[
    str,
    typer.Option(
        "--rules",
        "-r",
        metavar="RULES",
        help="A rule file, or the name of shipped rules.",
        autocompletion=complete_rules,
    ),
]
Var = Annotated[
    list[str] | None,
    typer.Option("--var", metavar="KEY=VALUE", help="A value for a variable of the rules."),
]
Trains = Annotated[
    list[str] | None,
    typer.Option(
        "--train",
        metavar="WHAT",
        help="Train these parts next to the tuners, instead of those that the rules name: pattern:head, module:GLOB, "
        "parameter:GLOB, or none.",
    ),
]
NumClasses = Annotated[
    int | None, typer.Option("--num-classes", metavar="N", min=1, help="Replace the head by one of N classes.")
]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FILE", help="Load this state dict: .safetensors, or .pth without pickled code."),
]
InputColumn = Annotated[str | None, typer.Option(metavar="NAME", help="Of a table: the path or the text.")]
LabelColumns = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Of a table: the label; several for labels of 0 and 1.")
]
TokenizerFolder = Annotated[
    str | None, typer.Option(metavar="DIR", help="The local folder of a tokenizer; of an hf: model, its own.")
]
InputSize = Annotated[
    str | None, typer.Option("--input-size", metavar="SIZE", help="H or C,H,W; the model's own by default.")
]
Within = Annotated[
    list[str] | None,
    typer.Option(
        "--within",
        metavar="GLOB",
        help="Capture and tune these submodules only, and keep the rest of the model's Python as it is; several times "
        "for several.",
    ),
]
Providers = Annotated[
    str, typer.Option("--providers", metavar="NAMES", help="Of ONNX Runtime: cpu, cuda, or both with a comma.")
]
Example = Annotated[
    str | None,
    typer.Option(
        "--example", metavar="SOURCE", help="Example inputs: an .npz file with arrays by name, or file.py:function."
    ),
]
InputShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input", metavar="NAME=SIZES", help="The sizes of one input: input_ids=2,16 or x=2,3,64,64:float16."
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of random weights, the data's split and training.")]
Trust = Annotated[bool, typer.Option("--trust", help="Run the Python code that the run's manifest names.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder that `utcompile train -o` wrote.")]
BatchSizes = Annotated[
    str | None,
    typer.Option(
        "--batch-sizes", metavar="N,N,…", help="At which ONNX Runtime is compared; 1,3,8 where the model allows it."
    ),
]
