"""The submodules that `within=` names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from utcompile.errors import UtcError
from utcompile.graph import UtcGraphModule
from utcompile.matching.places import nearest_path, wider_glob
from utcompile.rules import glob_match
from utcompile.rules.globs import glob_problem

Within = str | Sequence[str]


def find_parts(model: nn.Module, within: Within) -> dict[str, nn.Module]:
    """The modules that globs name, by path, in the order of the model; a shared one is found at its first path.

    Raises:
        UtcError: a glob is none, or names no module, or names the root or a graph; or a part is inside another.
    """
    globs = [within] if isinstance(within, str) else list(within) if isinstance(within, (tuple, list)) else []
    if not globs or not all(isinstance(glob, str) for glob in globs):
        raise UtcError(
            f"within must be one or several globs of module paths, not {within!r:.80}",
            fix='write within="backbone", or within=["encoder.layers.*", "decoder"]',
            code="arguments/type",
        )
    modules = {path: m for path, m in model.named_modules(remove_duplicate=False) if path}
    chosen: set[nn.Module] = set()
    for glob in globs:
        _check_glob(glob, list(modules))
        chosen |= {m for path, m in modules.items() if glob_match(glob, path)}
    found = {path: m for path, m in model.named_modules() if m in chosen}
    _check_apart(found)
    for path, module in found.items():
        if any(isinstance(m, UtcGraphModule) for m in module.modules()):
            raise UtcError(
                f"the part {path} is a recorded graph already, or has one inside",
                fix="compile the original model",
                code="parts/unsupported",
            )
    return found


def _check_glob(glob: str, paths: Sequence[str]) -> None:
    if problem := glob_problem(glob):
        raise UtcError(f"within={glob!r} is no glob of module paths", why=problem, code="arguments/value")
    if not any(glob_match(glob, path) for path in paths):
        wider = wider_glob(glob, paths)
        fix = f"did you mean {wider!r}?" if wider else nearest_path(glob, paths)
        raise UtcError(f"within={glob!r} names no submodule of the model", fix=fix, code="parts/not-found")


def _check_apart(parts: dict[str, nn.Module]) -> None:
    """No part lies inside another one."""
    around = {inner: path for path, module in parts.items() for inner in module.modules() if inner is not module}
    for path, module in parts.items():
        if (outer := around.get(module)) is not None:
            raise UtcError(
                f"the part {path} is inside the part {outer}",
                why="a submodule is captured once, in one graph",
                fix="let `within=` name the outer one or the inner ones: '*' is one segment of a path",
                code="parts/overlap",
            )
