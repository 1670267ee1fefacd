"""The user's class with a `TunedModule` at each part's path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from utcompile.errors import UtcError
from utcompile.graph import owner_of, path_in
from utcompile.graph.structure import structural_copy
from utcompile.graph.ties import clones
from utcompile.matching import PlanData
from utcompile.parts.captured import CapturedParts, copy_with_modes
from utcompile.parts.proof import prove
from utcompile.rewrite import Kept, TunedModule, read_tensors, replace_module, tensors_of
from utcompile.rewrite.tasks import Tasks
from utcompile.rules import RuleSet


def insert_parts(
    captured: CapturedParts,
    plans: Mapping[str, PlanData],
    ruleset: RuleSet,
    trained: Sequence[str],
    insert: Callable[[PlanData], TunedModule],
) -> nn.Module:
    """A copy of the user's model, which shares its frozen memory, with tuned parts; and the proof of the whole.

    Args:
        captured: the parts.
        plans: by path, of the parts that have a site, or parameters that train.
        ruleset: the rules.
        trained: names of parameters outside of the parts that train.
        insert: makes a tuned module of a plan.

    Raises:
        UtcError: as `insert_and_check`; or a parameter is tuned that is used outside of its part too; or the outputs of
            the whole model differ.
    """
    for path, plan in plans.items():
        _refuse_shared(path, plan, captured)
    tuned = {path: insert(plan) for path, plan in plans.items()}
    model = copy_with_modes(captured.model)
    originals = {path: _emptied(model.get_submodule(path)) for path in plans}
    for path, part in tuned.items():
        replace_module(model, path, part)
        part.train(captured.model.training)
    _own_memory(model, tuple(plans), trained)
    retie(model, captured.ties)
    modes = {path: module.training for path, module in captured.model.named_modules()}
    kept = Kept(ruleset, captured.example, modes, originals, captured.ties, Tasks(tensors_of, read_tensors))
    kept.put_into(model)
    kept.proven = prove(captured, model, tuned)
    return model


def retie(model: nn.Module, ties: Sequence[tuple[str, ...]]) -> None:
    """Make one parameter of those that were one in the original, where none of them trains."""
    for group in ties:
        first = model.get_parameter(group[0])
        for name in group[1:]:
            owner, attribute = owner_of(model, name)
            mine = owner._parameters.get(attribute)
            if mine is not None and not mine.requires_grad and not first.requires_grad and mine.shape == first.shape:
                owner._parameters[attribute] = first


def _refuse_shared(path: str, plan: PlanData, captured: CapturedParts) -> None:
    """A parameter that has a use outside of its part is not tuned: there it would stay as it was."""
    names = {n: site.id for site in plan.sites for n in site.tunes.values() if n is not None}
    names |= dict.fromkeys(plan.trained, "train:")
    for name, by in names.items():
        full = path_in(path, name)
        group = next((g for g in captured.ties if full in g), None)
        if group is not None or full in captured.read:
            use = f"is tied to {next(n for n in group if n != full)}" if group else "is read by the model's own code"
            raise UtcError(
                f"the parameter {full} {use}, outside of the part {path}",
                where=f"site {by}" if by != "train:" else by,
                why="a change of it would not be seen there",
                fix="exclude it by `except:` or `inside:`, let one part contain both, or untie them in the model first",
                code="parts/shared",
            )


def _own_memory(model: nn.Module, parts: tuple[str, ...], trained: Sequence[str]) -> None:
    """What trains outside of the parts is a copy; so are the buffers there, which training may write into."""
    named = {name: model.get_parameter(name) for name in trained}
    for name, clone in clones(named).items():
        owner, attribute = owner_of(model, name)
        owner._parameters[attribute] = clone
    inside = {id(m) for path in parts for m in model.get_submodule(path).modules()}
    for module in model.modules():
        if id(module) not in inside:
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.clone()


def _emptied(module: nn.Module) -> nn.Module:
    """A module without values: what a folded part becomes again."""
    return structural_copy(module).to("meta")
