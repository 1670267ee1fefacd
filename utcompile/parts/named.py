"""The submodules that `within=` names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from utcompile.errors import UtcError
from utcompile.graph import UtcGraphModule, path_in
from utcompile.rewrite import TunedModule
from utcompile.rewrite.chosen import Chooser
from utcompile.rewrite.unwrap import wrapped_attribute

Within = str | Sequence[str]
PARTS = Chooser("within=", "part", 'within="backbone", or within=["encoder.layers.*", "decoder"]')


def find_parts(model: nn.Module, within: Within) -> dict[str, nn.Module]:
    """The modules that globs name, by path, in the order of the model; a shared one is found at its first path.

    Raises:
        UtcError: a glob is none, or names no module, or names the root or a graph; or a part is inside another, or in a
            wrapper; or a part of the model is tuned already.
    """
    _refuse_tuned(model)
    _refuse_wrapped(model, "")
    modules = {path: m for path, m in model.named_modules(remove_duplicate=False) if path}
    chosen = {modules[path] for path in PARTS.chosen(within, list(modules))}
    found = {path: m for path, m in model.named_modules() if m in chosen}
    inside = {inner: path for path, module in found.items() for inner in module.modules() if inner is not module}
    PARTS.check_apart({path: inside.get(module) for path, module in found.items()})
    for path, module in found.items():
        _refuse_wrapped(model, path)
        if any(isinstance(m, UtcGraphModule) for m in module.modules()):
            raise UtcError(
                f"the part {path} is a recorded graph already, or has one inside",
                fix="compile the original model",
                code="parts/unsupported",
            )
    return found


def _refuse_tuned(model: nn.Module) -> None:
    tuned = next((path for path, m in model.named_modules() if isinstance(m, TunedModule)), None)
    if tuned is not None:
        raise UtcError(
            f"{tuned or 'this model'} is tuned already",
            why="the tuners of all parts are one plan, one checkpoint and one fold",
            fix="name all parts in one within=, for the original model; or fold first, and tune the folded model",
            code="parts/unsupported",
        )


def _refuse_wrapped(model: nn.Module, path: str) -> None:
    """A wrapper (`torch.compile`, data parallel, checkpoint, average) is put around what is tuned, and not inside."""
    above, module = "", model
    for segment in [*path.split(".")] if path else []:
        above, module = path_in(above, segment), module.get_submodule(segment)
        if wrapped_attribute(module):
            break
    attribute = wrapped_attribute(module)
    if attribute is not None:
        place = f"model.{above}" if above else "model"
        raise UtcError(
            f"{above or 'the model'} is wrapped: it is a {type(module).__name__}",
            why="names in checkpoints, and what a fold gives back, are those of the model inside",
            fix=f"compile with the module inside, {place}.{attribute}, and wrap the tuned one",
            code="parts/unsupported",
        )
