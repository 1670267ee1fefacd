"""What the shell completes: values of options."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import typer

from utcompile.cli import names
from utcompile.cli.recipe import key_of

KINDS = ("timm:", "torchvision:", "hf:", "demo:efficientnet_lite0")


def complete_model(incomplete: str) -> list[str]:
    """Models: the kind first, then its names."""
    kind, colon, name = incomplete.partition(":")
    if colon:
        return [f"{kind}:{found}" for found in _names(kind) if found.startswith(name)]
    return [kind for kind in KINDS if kind.startswith(incomplete)]


def _names(kind: str) -> Sequence[str]:
    tables: dict[str, Callable[[], Sequence[str]]] = {
        "timm": names.timm_names,
        "torchvision": names.torchvision_names,
        "demo": lambda: ("efficientnet_lite0",),
    }
    return tables[kind]() if kind in tables else ()


def complete_override(ctx: typer.Context, incomplete: str) -> list[str]:
    """Keys of `key=value`; or, in bash, what follows a colon in a model's name."""
    if list(ctx.params.get("overrides") or ())[-1:] == [":"]:
        return [name for name in _names(str(ctx.params.get("model"))) if name.startswith(incomplete)]
    keys = [key_of(option) for option in ctx.command.params if str(option.name) not in _NO_KEYS]
    return [f"{key}=" for key in keys if key.startswith(incomplete)]


_NO_KEYS = frozenset({"overrides", "recipe", "resume", "json", "trust", "help"})


def complete_rules(incomplete: str) -> list[str]:
    """Shipped rules."""
    return [name for name in names.rule_names() if name.startswith(incomplete)]


def complete_recipe(incomplete: str) -> list[str]:
    """Shipped recipes."""
    return [name for name in names.recipe_files() if name.startswith(incomplete)]


def choices(*words: str) -> Callable[[str], list[str]]:
    """A completion of fixed words."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete
