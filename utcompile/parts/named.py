"""The submodules that `within=` names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from utcompile.errors import UtcError
from utcompile.graph import UtcGraphModule
from utcompile.rewrite.chosen import Chooser

Within = str | Sequence[str]
PARTS = Chooser("within=", "part", 'within="backbone", or within=["encoder.layers.*", "decoder"]')


def find_parts(model: nn.Module, within: Within) -> dict[str, nn.Module]:
    """The modules that globs name, by path, in the order of the model; a shared one is found at its first path.

    Raises:
        UtcError: a glob is none, or names no module, or names the root or a graph; or a part is inside another.
    """
    modules = {path: m for path, m in model.named_modules(remove_duplicate=False) if path}
    chosen = {modules[path] for path in PARTS.chosen(within, list(modules))}
    found = {path: m for path, m in model.named_modules() if m in chosen}
    inside = {inner: path for path, module in found.items() for inner in module.modules() if inner is not module}
    PARTS.check_apart({path: inside.get(module) for path, module in found.items()})
    for path, module in found.items():
        if any(isinstance(m, UtcGraphModule) for m in module.modules()):
            raise UtcError(
                f"the part {path} is a recorded graph already, or has one inside",
                fix="compile the original model",
                code="parts/unsupported",
            )
    return found
