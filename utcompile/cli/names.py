"""Names that users type: of models, rules, recipes. Found in milliseconds, without importing what defines them."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"})
_QUOTED = re.compile(r"""['"](\w+)['"]""")
_REGISTERED = re.compile(r"^@register_model\b(?!\(name).*?^def (\w+)\(", re.MULTILINE | re.DOTALL)


@cache
def timm_names() -> tuple[str, ...]:
    """The models of the installed timm, read from its source files; none where it is not installed."""
    return _registered("timm", "models")


@cache
def torchvision_names() -> tuple[str, ...]:
    """The models of the installed torchvision."""
    return _registered("torchvision", "models")


def _registered(package: str, folder: str) -> tuple[str, ...]:
    spec = importlib.util.find_spec(package)
    homes = (spec.submodule_search_locations if spec else None) or []
    found: set[str] = set()
    for home in homes:
        for file in sorted((Path(home) / folder).rglob("*.py")):
            if "quantization" not in file.parts and "detection" not in file.parts and "video" not in file.parts:
                found.update(_REGISTERED.findall(file.read_text(encoding="utf-8")))
    return tuple(sorted(found))


@cache
def timm_optimizers() -> tuple[str, ...]:
    """Words among which are the optimizers of the installed timm, but those of bitsandbytes; none without timm."""
    spec = importlib.util.find_spec("timm")
    homes = (spec.submodule_search_locations if spec else None) or []
    files = [Path(home) / "optim" / "_optim_factory.py" for home in homes]
    texts = [file.read_text(encoding="utf-8") for file in files if file.is_file()]
    return tuple(sorted({name for text in texts for name in _QUOTED.findall(text)}))


def rule_names() -> tuple[str, ...]:
    """The shipped rules: `u_tuning/dual` …"""
    folder = _PACKAGE / "_shipped_rules"
    if not folder.is_dir():  # a checkout, where the folder is at the top
        folder = _PACKAGE.parent / "rules"
    return tuple(p.relative_to(folder).with_suffix("").as_posix() for p in sorted(folder.rglob("*.yaml")))


def recipe_files() -> dict[str, Path]:
    """The shipped recipes, by name."""
    return {path.stem: path for path in sorted((_PACKAGE / "recipes").glob("*.yaml"))}
