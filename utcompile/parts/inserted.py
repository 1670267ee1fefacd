"""The user's class with a `TunedModule` at each part's path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from utcompile.errors import UtcError
from utcompile.graph import owner_of, path_in
from utcompile.graph.structure import structural_copy
from utcompile.graph.ties import clones
from utcompile.matching import PlanData
from utcompile.parts.calling import computed, same_outputs
from utcompile.parts.captured import CapturedParts, copy_with_modes
from utcompile.rewrite import KEPT, Kept, TunedModule, read_tensors, replace_module, tensors_of
from utcompile.rewrite.tasks import Tasks
from utcompile.rules import RuleSet

IDENTITY = "identity at the start, on the example inputs"


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
        _refuse_shared(path, plan, captured.ties)
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
    vars(model)[KEPT] = kept
    kept.proven = _prove(captured, model, tuned)
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


def _refuse_shared(path: str, plan: PlanData, ties: Sequence[tuple[str, ...]]) -> None:
    """A parameter that has a use outside of its part is not tuned: there it would stay as it was."""
    names = {n: site.id for site in plan.sites for n in site.tunes.values() if n is not None}
    names |= dict.fromkeys(plan.trained, "train:")
    for name, by in names.items():
        group = next((g for g in ties if path_in(path, name) in g), None)
        if group is not None:
            other = next(n for n in group if n != path_in(path, name))
            raise UtcError(
                f"the parameter {path_in(path, name)} is tied to {other}, outside of the part {path}",
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


def _prove(captured: CapturedParts, model: nn.Module, tuned: Mapping[str, TunedModule]) -> str:
    """Compare the whole model with the original on the example, in the modes of that."""
    if not captured.compared:
        return "unproven: it was captured with verify='shapes'"
    parts = [f"{path}: {part.proven}" for path, part in tuned.items() if part.proven.startswith("unproven")]
    trainable = [p for p in model.parameters() if p.requires_grad]
    for parameter in trainable:  # torch takes another kernel where a weight requires a gradient, under no_grad too
        parameter.requires_grad_(False)
    for part in tuned.values():
        part.eval()
    call = captured.call()
    try:
        found = computed(model, call)
    except AttributeError as error:
        raise UtcError(
            f"the code around the parts reads what a captured part has not: {error}",
            why="a part is called; its methods and private attributes are those of a graph",
            fix="let `within=` name the submodules that this code calls",
            code="parts/unsupported",
        ) from error
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for part in tuned.values():
            part.train(captured.model.training)
    if parts:
        return f"unproven: {parts[0]}"
    if not same_outputs(found, computed(captured.model, call)):
        raise UtcError(
            "the model with tuned parts has other outputs at the start than the original",
            why="each part computes what it did, so the code around them reads something else of a part",
            fix="let `within=` name a larger part, which contains that code; or report the model",
            code="tune/not-identity",
        )
    return IDENTITY
