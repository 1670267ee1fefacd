"""A new run of `utcompile train`: the options become arguments of `fit`, after all that is cheap to check."""

from __future__ import annotations

import math
from pathlib import Path

import typer

from utcompile.cli import output
from utcompile.cli.early import (
    check_data,
    check_example,
    check_model,
    check_new_run,
    check_rules,
    check_tensorboard,
    check_weights,
)
from utcompile.cli.early_runs import CODE
from utcompile.cli.options import given, pairs_of, size_of, trained, variables
from utcompile.cli.train_checks import MOST, check_files, check_names, check_uses, check_values
from utcompile.cli.train_data import READING, is_function
from utcompile.cli.train_going_on import going_on, trusting
from utcompile.cli.training import train_run
from utcompile.errors import UtcError
from utcompile.plain_data import JsonObject

FITTING = (
    "epochs batch_size lr weight_decay schedule warmup label_smoothing mixup cutmix grad_clip optimizer accumulate "
    "patience ema class_weights precision seed workers"
).split()


def start_run(values: JsonObject) -> JsonObject:
    """Train as the options say; returns what happened."""
    names = {"model": "--model", "rules": "--rules", "data": "--data", "out": "--out"}
    missing = [flag for name, flag in names.items() if values[name] is None]
    if missing:
        raise typer.BadParameter("it is required, unless --resume is given", param_hint=", ".join(missing))
    task = values["task"] or "classify"
    check_values(values)
    check_uses(values, task)
    check_files(values)
    out, path = Path(values["out"]), _absolute(Path(values["data"]))
    check_new_run(out)
    check_model(values["model"])
    check_rules(values["rules"])
    check_data(path, task)
    check_weights(values["weights"] and Path(values["weights"]))
    check_example(values["example"], values["input_shapes"])
    check_names(values["optimizer"], values["metric"] or (), task)
    pairs_of(values["var"])
    trained(values["train_"])
    size = size_of(values["input_size"])
    if values["tensorboard"]:
        check_tensorboard()
    settings = _settings(values)
    reading: JsonObject = {key: values[key] for key in READING if key != "task"} | {"task": task}
    reading |= {key: list(value) for key, value in reading.items() if isinstance(value, tuple)}
    for key in CODE:
        reading[key] = reading[key] and str(_absolute(Path(reading[key])))
    augment = values["policy"] or values["augment"]

    from utcompile.train.optimizers import check_optimizer

    check_optimizer(settings["optimizer"])
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
        size,
        **given(values["example"], values["input_shapes"]),
        within=tuple(values["within"] or ()),
    )
    cache = cache_of(values["cache"])
    given_again = {name: values[name] for name in ("cache", "workers")}
    with going_on(out, given_again, trust=trusting(path, reading, choice)):
        return train_run(choice, ruleset, path, out, settings, augment=augment, reading=reading, prefix_cache=cache)


def _settings(values: JsonObject) -> JsonObject:
    """The arguments of `fit`."""
    settings = {key: values[key] for key in FITTING}
    settings["metrics"] = list(values["metric"] or ())
    settings["rates"] = _numbers(values["rate"], "--rate")
    settings["decays"] = _numbers(values["decay"], "--decay")
    settings["cpu"] = device_is_cpu(values["device"])
    return settings


def device_is_cpu(device: str) -> bool:
    """Whether training stays on the CPU.

    Raises:
        UtcError: there is no such device.
    """
    if device in ("cuda", "mps"):
        import torch

        is_there = torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()
        if not is_there:
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
            number = math.nan
        equals = equals if 0 <= number <= MOST["lr"] else ""
        if not equals or not name or name in found:
            raise UtcError(
                f"{name!r} is given twice" if name in found else f"{text!r} is not RULE=NUMBER",
                where=option,
                fix="write e.g. train=1e-2",
                code="train/settings",
            )
        found[name] = number
    return found


def _absolute(path: Path) -> Path:
    """`file.py:function` with the file's whole path; other paths as they are."""
    if not is_function(path):
        return path
    file, _, name = str(path).rpartition(":")
    return Path(f"{Path(file).resolve()}:{name}")


def cache_of(size: str) -> str | None:
    """The bound of the cache; None where there is none."""
    return None if size == "none" or not output.is_alone() else size
