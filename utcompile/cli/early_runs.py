"""Checks of runs, ONNX files, targets and options that verbs share; none of them imports torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from utcompile.cli.early import check_model, check_weights, runs_code
from utcompile.cli.folders import MANIFEST, TOKENIZER
from utcompile.cli.names import IMAGE_SUFFIXES
from utcompile.errors import UtcError, did_you_mean
from utcompile.files import check_folder

PROVIDERS = ("cpu", "cuda")
DTYPES = ("float32", "float16-weights", "float16")
ROUTINGS = ("call", "row")
CODE = ("loss", "metrics_function")  # settings of a run that name functions of a user's files
_MOST_BYTES = 64 << 20


def check_run(run: Path, model: str | None = None, weights: Path | None = None, *, trust: bool = False) -> None:
    """Raise where a folder contains no run, or its model is none or would run code that is not trusted.

    Args:
        model, weights, trust: as for the verbs.
    """
    manifest = peeked(run)
    recorded = manifest.get("model")
    spec = recorded.get("spec") if isinstance(recorded, Mapping) else None
    if model is not None:
        check_model(model)
    elif isinstance(spec, str):
        if runs_code(spec) and not trust:
            raise untrusted_model(str(run / MANIFEST), spec)
        if ":" in spec:  # what is none is reported with the rest of the manifest
            check_model(spec)
    check_weights(weights)


def peeked(run: Path) -> Mapping[str, object]:
    """The manifest of a run without checks; empty where it is damaged, which is reported when the run is opened.

    Raises:
        UtcError: there is none.
    """
    path = run / MANIFEST
    if not path.is_file():
        raise UtcError(
            "there is no checkpoint here",
            where=str(path),
            fix="name the folder that `utcompile train -o` or `save_tuners` wrote",
            code="checkpoint/not-found",
        )
    try:
        if path.stat().st_size > _MOST_BYTES:
            return {}
        found: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, Mapping) else {}


def check_functions(run: Path, doing: str, *, trust: bool) -> None:
    """Raise where a run was trained with a user's own functions, and these are not trusted."""
    training = peeked(run).get("training")
    named = [training[key] for key in CODE if training.get(key)] if isinstance(training, Mapping) else []
    if named and not trust:
        raise UtcError(
            f"{doing} this run would run code",
            where=str(run / MANIFEST),
            why=f"the manifest names {', '.join(map(str, named))}",
            fix="say --trust if you know where the run comes from",
            code="model/trust",
        )


def untrusted_model(where: str, spec: str) -> UtcError:
    """The error for a manifest that names code without leave to run it."""
    return UtcError(
        "building this run's model would run code",
        where=where,
        why=f"the manifest names {spec}",
        fix=f"name it yourself with -m {spec}, or say --trust if you know where the run comes from",
        code="model/trust",
    )


def check_onnx(file: Path) -> None:
    """Raise where there is no ONNX file."""
    if not file.is_file():
        why = "it is a folder" if file.is_dir() else None
        raise UtcError("there is no such ONNX file", where=str(file), why=why, code="onnx/file")


def check_source(source: Path, model: str | None, weights: Path | None, *, trust: bool) -> None:
    """Raise where what is predicted with or measured is neither a run nor an ONNX file."""
    if source.is_dir():
        check_run(source, model, weights, trust=trust)
    else:
        check_onnx(source)


def check_new_folder(out: Path) -> None:
    """Raise where a folder cannot be made or written."""
    if out.exists() and not out.is_dir():
        raise UtcError("the path is a file", where=str(out), fix="give another folder", code="path/invalid")
    check_folder(next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists()))


def check_proof(tolerance: float | None = None, dtype: str | None = None, routing: str = ROUTINGS[0]) -> None:
    """Raise where an option of an export or a comparison has no such value."""
    if tolerance is not None and not (tolerance >= 0 and math.isfinite(tolerance)):
        raise UtcError(f"tolerance is {tolerance}", fix="give a number from 0 on, e.g. 1e-4", code="arguments/value")
    check_word("dtype", dtype or DTYPES[0], DTYPES)
    check_word("routing", routing, ROUTINGS)


def check_providers(names: str) -> None:
    """Raise where a name is no provider of ONNX Runtime."""
    for word in names.split(","):
        if word.strip().lower() not in PROVIDERS:
            raise UtcError(f"there is no provider {word!r}", fix=did_you_mean(word, PROVIDERS), code="onnx/runtime")


def check_word(name: str, word: str, known: Sequence[str]) -> None:
    """Raise where a value is none of the words that there are."""
    if word not in known:
        raise UtcError(f"unknown {name} {word!r}", fix=did_you_mean(word, known), code="arguments/value")


def check_inputs(source: Path, inputs: Sequence[str]) -> None:
    """Raise where a file to predict from is not there. A text is none: a run takes texts that has a tokenizer."""
    is_run = source.is_dir()
    takes_texts = (source / TOKENIZER).is_dir()
    for text in inputs:
        is_image = Path(text).suffix.lower() in IMAGE_SUFFIXES and len(text.split()) == 1
        is_file = not takes_texts if is_run else is_image
        if (is_file or text.endswith((".npz", ".npy"))) and not _is_file(text):
            raise UtcError("there is no such file", where=text, fix="correct the path", code="data/not-found")


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # no name that a file can have
        return False
