"""A run of `utcompile train` that goes on: with its own settings, from its last whole epoch."""

from __future__ import annotations

from pathlib import Path

import typer

from utcompile.cli.early import check_data
from utcompile.cli.early_runs import check_functions, check_run
from utcompile.cli.train_data import READING, is_function
from utcompile.cli.train_going_on import going_on
from utcompile.cli.train_start import FITTING, cache_of
from utcompile.cli.training import train_run
from utcompile.errors import UtcError
from utcompile.plain_data import JsonObject

_SINCE_FIRST = frozenset("epochs batch_size lr weight_decay schedule label_smoothing seed augment".split())


def resume_run(given_now: JsonObject, out: Path) -> JsonObject:
    """Go on with a run, with its own settings."""
    check_run(out, given_now["model"], trust=given_now["trust"])
    if given_now["data"] is not None:
        check_data(given_now["data"], "")
    check_functions(out, "resuming", trust=given_now["trust"])
    from utcompile.cli.models import ModelChoice
    from utcompile.cli.runs import choice_of, rules_of
    from utcompile.rewrite import MANIFEST, read_manifest

    manifest = read_manifest(out)
    training = manifest.get("training")
    known = {*FITTING, "metrics", "rates", "decays", "cpu", "augment", *READING} - {"workers"}
    if (
        not isinstance(training, dict)
        or not _SINCE_FIRST <= training.keys() <= known
        or not isinstance(manifest.get("data"), str)
    ):
        raise UtcError(
            "the manifest does not say how the run was trained", where=str(out / MANIFEST), code="checkpoint/damaged"
        )
    path = given_now["data"] or Path(manifest["data"])
    if is_function(path) and given_now["data"] is None and not given_now["trust"]:
        raise UtcError(
            "resuming this run would run code",
            where=str(out / MANIFEST),
            why=f"the manifest names {path}",
            fix="say --trust if you know where the run comes from",
            code="model/trust",
        )
    choice: ModelChoice = choice_of(out, manifest, given_now["model"], given_now["trust"])
    reading = {key: training.get(key, default) for key, default in READING.items()}
    settings = {k: v for k, v in training.items() if k not in READING and k != "augment"}
    settings["workers"] = given_now["workers"]
    if given_now["device"] != "auto":
        settings["cpu"] = given_now["device"] == "cpu"
    with going_on(out, given_now, trust=given_now["trust"]):
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
            prefix_cache=cache_of(given_now["cache"]),
        )


def refuse_settings(ctx: typer.Context) -> None:
    """A run goes on with its own settings; one that is given would be ignored in silence."""
    free = {"out", "resume", "model", "data", "workers", "device", "cache", "report", "trust", "json"}
    for option in ctx.command.params:
        name = option.name or ""
        source = ctx.get_parameter_source(name)
        given_now = source is not None and source.name == "COMMANDLINE" and ctx.params.get(name) not in (None, [])
        if name not in free and given_now:
            raise typer.BadParameter("a run is resumed with its own settings", param_hint=option.opts[0])
