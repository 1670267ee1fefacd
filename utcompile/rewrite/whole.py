"""A tuned model as every door sees it: its tuned graphs by path, and what trains outside of them.

A `TunedModule` is one graph at the path "". A model of which parts are tuned (`within=`) is the user's own class with a
`TunedModule` at each part's path, and a `Kept` among its attributes. Checkpoints, tasks and folds take either kind.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import nn

from utcompile.errors import UtcError
from utcompile.graph import every_name, path_in
from utcompile.graph.shared import share_frozen
from utcompile.graph.structure import every_path
from utcompile.rewrite.base_print import statistics_of
from utcompile.rewrite.tasks import Tasks
from utcompile.rewrite.tuned import TunedModule
from utcompile.rewrite.tuned_site import TunedSite
from utcompile.rewrite.unwrap import KEPT, plain_path, unwrapped
from utcompile.rules import RuleSet


@dataclass
class Kept:
    """What a model of which parts are tuned knows beyond its own class.

    Attributes:
        ruleset: the rules that its parts were compiled with.
        example: a call of the whole model (`utcompile.recording.example.Example`): `args` and `kwargs`.
        modes: of every module outside the parts, the mode at capture.
        originals: by path, the modules that the parts were made of, without values.
        ties: the names of each parameter that a part shares with another part, or with the rest.
        tasks: which task is in place, and those that wait.
        proven: what was compared with the original model, or why nothing was.
        model: the model that has this; None after unpickling, until a verb takes it.
    """

    ruleset: RuleSet
    example: Any
    modes: Mapping[str, bool]
    originals: Mapping[str, nn.Module]
    ties: tuple[tuple[str, ...], ...]
    tasks: Tasks
    proven: str = "unproven"
    model: weakref.ref[nn.Module] | None = None

    def put_into(self, model: nn.Module) -> None:
        """Become the first attribute of a model, which a copy copies first."""
        self.model, state = weakref.ref(model), dict(vars(model))
        vars(model).clear()
        vars(model).update({KEPT: self, **state})

    def __deepcopy__(self, memo: dict[int, object]) -> Kept:
        """A copy, for a copy of the model, which shares the frozen memory until one of both is written."""
        model = None if self.model is None else self.model()
        if model is not None:
            share_frozen(model, memo)
        memo[id(self)] = made = copy.copy(self)
        for name in (f.name for f in fields(self) if f.name != "model"):
            setattr(made, name, copy.deepcopy(getattr(self, name), memo))
        copied = memo.get(id(model))
        made.model = weakref.ref(copied) if isinstance(copied, nn.Module) else None
        return made

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "model": None}


@dataclass(frozen=True)
class Whole:
    """A tuned model.

    Attributes:
        module: the model: a `TunedModule`, or the user's class with some inside.
        parts: the tuned graphs by path; of a `TunedModule` itself, by the empty path.
        kept: of a model of which parts are tuned.
    """

    module: nn.Module
    parts: Mapping[str, TunedModule]
    kept: Kept | None = field(default=None, repr=False)

    @classmethod
    def of(cls, model: object, verb: str) -> Self:
        """A tuned model, out of what wraps it.

        Raises:
            UtcError: it is none.
        """
        found = unwrapped(model, verb)
        if isinstance(found, TunedModule):
            return cls(found, {"": found})
        kept = vars(found).get(KEPT) if isinstance(found, nn.Module) else None
        if not isinstance(found, nn.Module) or not isinstance(kept, Kept):
            raise UtcError(
                f"{verb} takes a TunedModule, not {type(found).__name__}",
                fix="compile the model first: utc.compile",
                code="checkpoint/write",
            )
        kept.model = weakref.ref(found)
        every = {n: m for n, m in found.named_modules() if isinstance(m, TunedModule)}
        outermost = {n: m for n, m in every.items() if not any(n.startswith(f"{other}.") for other in every)}
        return cls(found, {plain_path(found, n): m.as_one_graph() for n, m in outermost.items()}, kept)

    @property
    def is_one_graph(self) -> bool:
        """Whether the model is one tuned graph."""
        return self.kept is None

    @property
    def ruleset(self) -> RuleSet:
        """The rules that it was compiled with."""
        return self.kept.ruleset if self.kept is not None else self.parts[""].ruleset

    @property
    def tasks(self) -> Tasks:
        """Its tasks."""
        return self.kept.tasks if self.kept is not None else self.parts[""].tasks

    @cached_property
    def sites(self) -> tuple[TunedSite, ...]:
        """The tuners in place, with the paths of the whole model."""
        return tuple(site_in(path, site) for path, tuned in self.parts.items() for site in tuned.sites)

    @cached_property
    def outside(self) -> dict[str, torch.Tensor]:
        """Every parameter and persistent buffer outside of the parts, by name."""
        if self.is_one_graph:
            return {}
        parts = [self.module.get_submodule(path) for path in self.parts]
        inside = tuple(f"{path}." for part in parts for path in every_path(self.module, part))
        passing = {
            path_in(path, name) for path, m in self.module.named_modules() for name in m._non_persistent_buffers_set
        }
        found = {n: t for n, t in every_name(self.module) if not n.startswith(inside) and n not in passing}
        return {plain_path(self.module, n): t for n, t in found.items()}

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint has: tuners' tensors by site, what `train:` names, and statistics that training moves."""
        found: dict[str, torch.Tensor] = {}
        for path, tuned in self.parts.items():
            for site in tuned.sites:
                name = site_in(path, site).id
                state = tuned.get_submodule(site.name).state_dict(keep_vars=True)
                found |= {f"{name}:{key}": value for key, value in state.items()}
        for path, tuned in self.parts.items():
            found |= {f"train:{path_in(path, n)}": tuned.get_parameter(n) for n in tuned.trained}
        found |= {f"train:{n}": t for n, t in self.outside.items() if t.requires_grad}
        for path, tuned in self.parts.items():
            found |= {f"statistics:{path_in(path, n)}": tuned.get_buffer(n) for n in statistics_of(tuned)}
        return found | {f"statistics:{n}": t for n, t in self.outside.items() if not isinstance(t, nn.Parameter)}

    def frozen_outside(self) -> dict[str, torch.Tensor]:
        """The parameters outside of the parts that a checkpoint does not bring along, by name."""
        found = self.outside.items()
        return {n: t for n, t in sorted(found) if isinstance(t, nn.Parameter) and not t.requires_grad}


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that a checkpoint of a tuned model has, by their names there."""
    return Whole.of(model, "save_tuners").tensors()


def replace_module(model: nn.Module, path: str, new: nn.Module) -> None:
    """Put a module in the place of another, wherever that is in the tree."""
    old = model.get_submodule(path)
    for owner in list(model.modules()):
        for name, child in owner._modules.items():
            if child is old:
                owner._modules[name] = new


def site_in(path: str, site: TunedSite) -> TunedSite:
    """A site of a part with the path that it has in the whole model."""
    if not path:
        return site
    inside = path_in(path, site.path)
    return replace(site, id=f"{site.rule}/{inside}{site.id.removeprefix(f'{site.rule}/{site.path}')}", path=inside)
