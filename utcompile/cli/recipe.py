"""Recipes: the options of `train` in a file, and as `key=value`.

A recipe is a YAML file with one key per option, named as its flag with `_` for `-`. A flag wins over `key=value`, that
over the recipe, and that over the option's default. Every value is read as the flag's would be. An option that may be
given several times takes a list, `key=value` several times, or commas between the values where these have none.

    about: Segmentation of images by masks.
    task: segment
    epochs: 30
    var: {r: 4}          # several: a list or a mapping
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, get_args, get_origin

import typer

from utcompile.cli.names import recipe_files
from utcompile.errors import UtcError, did_you_mean
from utcompile.plain_data import JsonObject

_MOST_BYTES = 64 * 1024
ABOUT = "about"
# Not in a recipe: what concerns one call.
_CALL = frozenset({"recipe", "overrides", "resume", "json", "trust", "ctx", "return"})


def chosen(
    ctx: typer.Context, kinds: Mapping[str, Any], recipe: str | None, overrides: Sequence[str], task: str | None
) -> JsonObject:
    """The value of every option of a command: its default, the recipe's, an override's or the flag's.

    Args:
        ctx: of the command, with the values of the flags.
        kinds: the type of each option: `int`, `float | None`, `list[str] | None` …
        recipe: a file, or the name of a shipped recipe; the task's own where there is none.
        overrides: `key=value` texts.
        task: what the flag says.

    Raises:
        UtcError: no such recipe, an unknown key, or a value that the option does not take.
    """
    options = {key_of(option): str(option.name) for option in ctx.command.params}
    several = {key for key, option in options.items() if _is_several(kinds.get(option))}
    given = _overrides(overrides, several)
    name = recipe or task or given.get("task", ("classify", ""))[0]
    entries = {**_read(str(name), named=recipe is not None), **given}
    values = dict(ctx.params)
    for key, (value, where) in entries.items():
        option = options.get(key, "")
        if option not in kinds or option in _CALL:
            raise UtcError(
                f"there is no option {key!r}",
                where=where,
                fix=did_you_mean(key, [name for name, option in options.items() if option not in _CALL]),
                code="train/settings",
            )
        if not _is_flag_given(ctx, option):
            values[option] = _converted(kinds[option], value, where, key)
    return values


def key_of(option: Any) -> str:
    """An option's name in a recipe: that of its flag, or of the argument."""
    flags = [flag for flag in option.opts if flag.startswith("--")]
    return str(flags[0][2:].replace("-", "_") if flags else option.name)


def _is_several(kind: object) -> bool:
    return any(get_origin(part) is list for part in (kind, *get_args(kind)))


def _is_flag_given(ctx: typer.Context, key: str) -> bool:
    source = ctx.get_parameter_source(key)
    return source is not None and source.name == "COMMANDLINE"


_Entry = tuple[Any, str]  # a value of texts, and where it is


def _overrides(texts: Sequence[str], several: Set[str]) -> dict[str, _Entry]:
    found: dict[str, _Entry] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UtcError(f"{text!r} is not key=value", fix="write e.g. epochs=20", code="train/settings")
        key = key.replace("-", "_")
        if key in found and key not in several:
            raise UtcError(f"{key!r} is given twice", where=text, code="train/settings")
        found[key] = ((*found[key][0], value) if key in found else (value,) if key in several else value, text)
    return found


def _read(name: str, *, named: bool) -> dict[str, _Entry]:
    shipped = recipe_files()
    path = Path(name)
    if name in shipped and not path.is_file():
        path = shipped[name]
    elif not path.is_file():
        if not named:
            raise UtcError(f"unknown task {name!r}", fix=did_you_mean(name, shipped), code="train/settings")
        raise UtcError(f"no recipe {name!r}", fix=did_you_mean(name, shipped), code="train/settings")
    return _entries(path)


def _entries(path: Path) -> dict[str, _Entry]:
    import yaml

    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UtcError("the recipe is too large", where=str(path), code="train/settings")
        root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UtcError(
            "the recipe cannot be read", where=str(path), why=" ".join(str(error).split()), code="train/settings"
        ) from error
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise UtcError("a recipe is a mapping", where=str(path), fix="write e.g. epochs: 20", code="train/settings")
    found: dict[str, _Entry] = {}
    for key_node, value in root.value:
        mark = key_node.start_mark
        where, key = f"{path}:{mark.line + 1}:{mark.column + 1}", str(key_node.value).replace("-", "_")
        if key in found:
            raise UtcError(f"{key!r} is given twice", where=where, code="train/settings")
        if key != ABOUT:
            found[key] = (_plain(value, where), where)
    return found


def _plain(node: object, where: str) -> object:
    """A node as texts: one, a list of them, or a mapping to them."""
    import yaml

    if isinstance(node, yaml.ScalarNode):
        return node.value
    if isinstance(node, yaml.SequenceNode) and all(isinstance(n, yaml.ScalarNode) for n in node.value):
        return [n.value for n in node.value]
    if isinstance(node, yaml.MappingNode) and all(isinstance(v, yaml.ScalarNode) for _, v in node.value):
        return {k.value: v.value for k, v in node.value}
    raise UtcError(
        "the value is nested too deep", where=where, fix="give one value, a list or a mapping", code="train/settings"
    )


def _converted(kind: Any, value: Any, where: str, key: str) -> Any:
    """A value of texts as the option reads it."""
    kinds = [k for k in get_args(kind) if k is not type(None)] if type(None) in get_args(kind) else [kind]
    wanted = kinds[0]
    if get_origin(wanted) is list:
        return _several(value, key)
    if type(None) in get_args(kind) and value in ("null", "~", "none", ""):
        return None
    if not isinstance(value, str):
        raise UtcError(f"{key!r} takes one value", where=where, code="train/settings")
    if wanted is bool:
        if value.lower() not in _FLAGS:
            raise _no_value(key, value, "true or false", where)
        return _FLAGS[value.lower()]
    try:
        return wanted(value)
    except ValueError as error:
        raise _no_value(key, value, _WORDS.get(wanted, "another value"), where) from error


def _several(value: str | Sequence[str] | Mapping[str, object], key: str) -> list[str] | None:
    """The values of an option that may be given several times; `train: none` is a value, and `null` is none."""
    if isinstance(value, Mapping):
        return [f"{k}={v}" for k, v in value.items()]
    if isinstance(value, list):
        return value
    texts = [value] if isinstance(value, str) else list(value)
    if texts in (["null"], ["~"], [""]):
        return None
    commas = _COMMAS.get(key)
    return (
        texts if commas is None else [part.strip() for text in texts for part in re.split(commas, text) if part.strip()]
    )


# Between the values of an option that has none inside of one value.
_COMMAS = {**dict.fromkeys(("metric", "rate", "decay", "train"), r"[ ,]+"), "label_column": ","}
_FLAGS = {**dict.fromkeys(("true", "yes", "on", "1"), True), **dict.fromkeys(("false", "no", "off", "0"), False)}
_WORDS = {int: "a whole number", float: "a number"}


def _no_value(key: str, value: str, wanted: str, where: str) -> UtcError:
    return UtcError(f"{key!r} cannot be {value!r:.60}", where=where, fix=f"give {wanted}", code="train/settings")
