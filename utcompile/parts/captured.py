"""`capture(…, within=)`: the parts of a model as graphs, from one real call of the whole."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from utcompile.errors import UtcError
from utcompile.graph.nested import tensors
from utcompile.graph.structure import every_path, structural_copy
from utcompile.graph.ties import Ties, ties_of
from utcompile.parts.named import Within, find_parts
from utcompile.parts.observed import PartCall, example_of, observe
from utcompile.recording import CapturedModule, capture
from utcompile.recording.example import Example
from utcompile.recording.inputs import Dynamic, Examples

Dims = dict[int, str]
_LETTERS = {(2, 1): "L", (3, 1): "L", (4, 1): "H", (4, 2): "H", (4, 3): "W"}


@dataclass(frozen=True)
class CapturedParts:
    """Parts of a model as graphs, and the model around them.

    Attributes:
        model: a copy of the user's model that shares its memory, in the modes that it had, with the original parts.
        parts: the captured modules by path.
        example: the call of the whole model.
        compared: whether later steps compare with the original; not after `verify="shapes"`.
        ties: the names of each parameter that a part shares with another part, or with the rest.
        read: the names of the parts' parameters that the code around them reads.
    """

    model: nn.Module = field(repr=False)
    parts: Mapping[str, CapturedModule]
    example: Example = field(repr=False)
    compared: bool = True
    ties: Ties = ()
    read: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = f"parts of {type(self.model).__name__}: {', '.join(self.parts)}"
        return "\n".join([head, *(f"{path}: {part.report}" for path, part in self.parts.items())])

    def call(self) -> dict[str, object]:
        """Fresh arguments of the whole model: `args` and `kwargs`."""
        parameter = next((p for p in self.model.parameters() if p.is_floating_point()), torch.empty(0))
        return self.example.arguments(self.example.dtype, parameter.device)


def capture_parts(
    model: nn.Module,
    example_inputs: Examples,
    within: Within,
    dynamic: Dynamic | None = None,
    base: Literal["frozen", "follow"] = "frozen",
    verify: Literal["values", "full", "shapes"] = "values",
) -> CapturedParts:
    """Capture the submodules that `within` names, as they are called in one call of the model.

    Args:
        model: called once, on a copy, in the mode that it is in; its parts are in eval.
        example_inputs: of the whole model.
        within: globs of module paths.
        dynamic: the sizes that vary, by the names of the parts' inputs. By default the batch and, where a part allows
            it, the lengths, heights and widths of its inputs.
        base, verify: as for `capture`.

    Raises:
        UtcError: as `capture`; or a glob names nothing, a part is never called, or needs more than one graph.
    """
    if not isinstance(model, nn.Module):
        raise UtcError(f"capture takes an nn.Module, not {type(model).__name__}", code="arguments/type")
    parts = find_parts(model, within)
    example = example_of(example_inputs)
    copied = copy_with_modes(model)
    for path in parts:
        copied.get_submodule(path).eval()
    called = CapturedParts(copied, {}, example).call()
    observed = copy_with_modes(
        copied
    )  # a call may leave more than tensors in a model: counters, features that it keeps
    calls, read = observe(observed, {path: observed.get_submodule(path) for path in parts}, called)
    found: dict[str, CapturedModule] = {}
    for path, part in parts.items():
        try:
            found[path] = _captured(part, calls[path], dynamic, base, verify)
            found[path].part_path = path
        except UtcError as error:
            raise error.within(f"the part {path} ({type(part).__name__})") from error
    return CapturedParts(copied, found, example, verify != "shapes", _crossing(model, parts), read)


def copy_with_modes(model: nn.Module) -> nn.Module:
    """A structural copy in which every module has the mode of the original."""
    copied = structural_copy(model)
    for path, module in model.named_modules():
        copied.get_submodule(path).training = module.training
    return copied


def _crossing(model: nn.Module, parts: Mapping[str, nn.Module]) -> Ties:
    """The ties between a part and what is outside of it; a part that is shared itself counts once."""
    others = {other: path for path, part in parts.items() for other in every_path(model, part)}

    def home_and_name(name: str) -> tuple[str, str]:
        other = next((other for other in others if name.startswith(f"{other}.")), None)
        return ("", name) if other is None else (others[other], others[other] + name.removeprefix(other))

    groups = [dict.fromkeys(map(home_and_name, group)) for group in ties_of(model)]
    return tuple(tuple(name for _, name in group) for group in groups if len({home for home, _ in group}) > 1)


def _captured(
    part: nn.Module,
    calls: list[PartCall],
    dynamic: Dynamic | None,
    base: Literal["frozen", "follow"],
    verify: Literal["values", "full", "shapes"],
) -> CapturedModule:
    """One graph for all calls of a part."""
    kinds = {call.signature: call for call in calls}
    if len(kinds) > 1:
        raise UtcError(
            f"it is called in {len(kinds)} ways in one call of the model, and needs more than one graph",
            why=" and ".join(_said(call) for call in list(kinds.values())[:2]),
            fix="let `within=` name its submodules, or those of its callers that are called in one way",
            code="parts/signatures",
        )
    call, example = calls[0].arguments, calls[0].example
    if dynamic is not None:
        return _named_as_user(part, capture(part, example, _of_its(dynamic, call), base, verify))
    must = _differing(calls)
    for dims in _candidates(call, must):
        try:
            return _named_as_user(part, capture(part, example, dims, base, verify))
        except UtcError:  # it pins one of them; the last try, in which nothing must vary, says why where that fails too
            continue
    if any(must.values()):
        names = ", ".join(f"{name}: {sorted(dims)}" for name, dims in must.items() if dims)
        raise UtcError(
            "its calls have inputs of several sizes, and no graph of it allows them",
            why=f"these dimensions differ: {names}",
            fix="let `within=` name its submodules, or say with dynamic= what varies",
            code="parts/signatures",
        )
    return _named_as_user(part, capture(part, example, None, base, verify))


def _named_as_user(part: nn.Module, captured: CapturedModule) -> CapturedModule:
    """The plain attributes of a part, which the code around it may read."""
    kept = {name: value for name, value in vars(part).items() if not name.startswith("_") and _is_plain(value)}
    captured.model_attributes = {**kept, **captured.model_attributes}
    return captured


def _is_plain(value: object) -> bool:
    return not isinstance(value, (torch.Tensor, nn.Module)) and not callable(value) and not tensors(value)


def _of_its(dynamic: Dynamic, example: Mapping[str, object]) -> Dynamic:
    if isinstance(dynamic, Mapping):
        return {name: dims for name, dims in dynamic.items() if name in example}
    return [name for name in ([dynamic] if isinstance(dynamic, str) else dynamic) if name in example]


def _said(call: PartCall) -> str:
    return f"({', '.join(f'{name}: {_kind(value)}' for name, value in call.arguments.items())})"


def _kind(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of {', '.join(map(_kind, value))}"[:60]
    return repr(value)[:40]


def _differing(calls: list[PartCall]) -> dict[str, set[int]]:
    """The dimensions of each input that differ between calls."""
    first = calls[0].arguments
    found: dict[str, set[int]] = {}
    for name, value in first.items():
        if isinstance(value, torch.Tensor):
            shapes = [c.arguments[name].shape for c in calls]  # type: ignore[attr-defined]
            found[name] = {d for d in range(value.dim()) if len({s[d] for s in shapes}) > 1}
    return found


def _candidates(example: Mapping[str, object], must: Mapping[str, set[int]]) -> Iterator[dict[str, Dims]]:
    """What may vary in a part's inputs, the most first: the last candidate has what must vary alone."""
    named = {name: value for name, value in example.items() if isinstance(value, torch.Tensor)}
    first = next((t for t in named.values() if t.dim()), None)
    tried: list[dict[str, Dims]] = []
    for free in ({4: (2, 3), 3: (1,), 2: ()}, {4: (1, 2), 3: (1,), 2: ()}, {}):
        for by_size in (False, True) if free else (False,):
            labels: dict[tuple[object, ...], str] = {}
            dims = {
                name: _dims(t, first, free.get(t.dim(), ()), must[name], by_size, labels) for name, t in named.items()
            }
            dims = {name: d for name, d in dims.items() if d}
            if dims and dims not in tried and (any(must.values()) or free):
                tried.append(copy.deepcopy(dims))
                yield dims


def _dims(
    t: torch.Tensor,
    first: torch.Tensor | None,
    free: tuple[int, ...],
    must: set[int],
    by_size: bool,
    names: dict[tuple[object, ...], str],
) -> Dims:
    """The dimensions of a tensor that vary, by name: one name for each place and size, or for each size alone."""
    found: Dims = {}
    if first is not None and t.dim() and t.shape[0] == first.shape[0]:
        found[0] = "B"
    is_token = not t.is_floating_point() and not t.is_complex()
    for dim in sorted({*free, *must, *((1,) if is_token and t.dim() == 2 else ())}):
        if dim not in found and (t.shape[dim] > 1 or dim in must):
            letter = _LETTERS.get((t.dim(), dim), "S")
            key = (t.shape[dim],) if by_size else (letter, t.shape[dim])
            taken = letter in names.values() and key not in names
            found[dim] = names.setdefault(key, f"{letter}{t.shape[dim]}" if taken else letter)
    return found
