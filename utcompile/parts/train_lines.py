"""`train:` for a model of which parts are tuned: which line selects what, in which part or outside of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from utcompile.errors import UtcError
from utcompile.graph import owner_path, path_in
from utcompile.graph.structure import every_path
from utcompile.graph.ties import ties_of
from utcompile.matching.places import wider_glob
from utcompile.parts.captured import CapturedParts
from utcompile.rules import RuleSet, Train, glob_match


@dataclass(frozen=True)
class Lines:
    """What the lines of `train:` select.

    Attributes:
        inside: by part, lines that select parameters there.
        outside: names of parameters outside of the parts.
        notes: remarks on lines that select nothing.
    """

    inside: Mapping[str, tuple[Train, ...]]
    outside: tuple[str, ...]
    notes: tuple[str, ...]


def lines_by_part(captured: CapturedParts, ruleset: RuleSet) -> Lines:
    """Share out the lines of `train:`.

    Globs are of the whole model's names, or of the names inside a part. `pattern:head` selects nothing: where the head
    of the model is, no part knows.

    Raises:
        UtcError: a line selects nothing.
    """
    inside: dict[str, list[Train]] = {path: [] for path in captured.parts}
    outside: list[str] = []
    notes: list[str] = []
    for line in ruleset.train:
        if line.kind == "pattern":
            if line.glob != "head":
                raise UtcError(
                    f"train: 'pattern:{line.glob}' is not possible where parts are tuned",
                    where=str(line.mark),
                    why="patterns find what they name in one graph",
                    fix="name the parameters: train=['module:…'] or ['parameter:…'], with the whole model's names",
                    code="match/train",
                )
            notes.append("train: the head of the model is in no part, and stays frozen; name it: train=['module:…']")
            continue
        found = False
        for path, part in captured.parts.items():
            names = [n for n, _ in part.named_parameters(remove_duplicate=False)]
            chosen = [n for n in names if _selects(line, path_in(path, n)) or _selects(line, n)]
            inside[path] += [replace(line, kind=_kind(line), glob=name) for name in chosen]
            found |= bool(chosen)
        beyond = [n for n in _names_outside(captured.model, captured.parts) if _selects(line, n)]
        outside += beyond
        if not found and not beyond:
            raise _selects_nothing(line, captured.model)
    _refuse_ties(captured, outside)
    return Lines({p: tuple(lines) for p, lines in inside.items()}, tuple(dict.fromkeys(outside)), tuple(notes))


def _kind(line: Train) -> Literal["untied", "parameter"]:
    return "untied" if line.kind == "untied" else "parameter"


def _selects(line: Train, name: str) -> bool:
    if line.kind != "module":
        return glob_match(line.glob, name)
    owner = owner_path(name)
    parts = owner.split(".")
    return any(glob_match(line.glob, ".".join(parts[: i + 1])) for i in range(len(parts)))


def _names_outside(model: nn.Module, parts: Mapping[str, nn.Module]) -> list[str]:
    inside = tuple(f"{other}." for path in parts for other in every_path(model, model.get_submodule(path)))
    return [n for n, _ in model.named_parameters(remove_duplicate=False) if not n.startswith(inside)]


def _selects_nothing(line: Train, model: nn.Module) -> UtcError:
    names = [n for n, _ in model.named_parameters()]
    owners = list(dict.fromkeys(owner_path(n) for n in names))
    near = wider_glob(line.glob, owners if line.kind == "module" else names)
    return UtcError(
        f"train: '{line.kind}:{line.glob}' selects no parameter",
        where=str(line.mark),
        why="neither the whole model nor a part has such a name",
        fix=f"write {line.kind}:{near}" if near else "see the names of model.named_parameters()",
        code="match/train",
    )


def _refuse_ties(captured: CapturedParts, outside: Sequence[str]) -> None:
    for group in ties_of(captured.model):
        chosen = [name for name in group if name in outside]
        if chosen and len(chosen) < len(group):
            other = next(name for name in group if name not in chosen)
            raise UtcError(
                f"train: {chosen[0]} is tied to {other}, which does not train",
                fix="name both, or untie them in the model before it is compiled",
                code="parts/shared",
            )
