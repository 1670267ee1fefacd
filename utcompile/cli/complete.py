"""What the shell completes: values of options."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from utcompile.cli import names

KINDS = ("timm:", "torchvision:", "hf:", "demo:efficientnet_lite0")


def complete_model(args: list[str], incomplete: str) -> list[str]:
    """Models: the kind first, then its names. bash splits words at a colon, so there the kind is a word before."""
    kind, colon, name = incomplete.partition(":")
    if colon:
        return [f"{kind}:{found}" for found in _names(kind) if found.startswith(name)]
    words = [word for word in args if word]
    if words and words[-1].endswith(":"):
        kind = words[-1].rstrip(":") or (words[-2] if len(words) > 1 else "")
        return [found for found in _names(kind) if found.startswith(incomplete)]
    if len(words) > 1 and words[-2].endswith(":") and words[-1] == incomplete:
        kind = words[-2].rstrip(":") or (words[-3] if len(words) > 2 else "")
        return [found for found in _names(kind) if found.startswith(incomplete)]
    return [kind for kind in KINDS if kind.startswith(incomplete)]


def _names(kind: str) -> Sequence[str]:
    tables: dict[str, Callable[[], Sequence[str]]] = {
        "timm": names.timm_names,
        "torchvision": names.torchvision_names,
        "demo": lambda: ("efficientnet_lite0",),
    }
    return tables[kind]() if kind in tables else ()


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
