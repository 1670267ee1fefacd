"""`PlanData`: the sites of a rule set in a captured model, as data."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Literal, Self

from torch import fx

from utcompile.graph import GraphView, UtcGraphModule
from utcompile.graph.ties import tied_to, ties_of
from utcompile.matching.explain import Miss
from utcompile.matching.index import index_of
from utcompile.matching.misses import misses
from utcompile.matching.sites import Site
from utcompile.matching.skipped import Skipped
from utcompile.rules import RuleSet, library_patterns

TunerDtype = Literal["float32", "base"]


@dataclass(frozen=True, kw_only=True)
class PlanData:
    """The sites of a rule set in a captured model.

    A plan pickles with its captured model; in the copy, its sites name nodes of the copied model's graph.

    Attributes:
        sites: the sites, in file order and, within a rule, in graph order.
        trained: names of the backbone's parameters that `train:` selects; they are cloned and trained. All names of a
            tied parameter are among them.
        untied: the names that train apart from the parameters that they are tied to.
        ruleset: the rules.
        module: the captured model, which is not changed.
        tuner_dtype: the dtype of trained parameters on a base in half precision.
        notes: remarks on lines of `train:` that select less than expected.
        skipped: sites that rules with `on_refusal: skip` have skipped, with the reasons.
    """

    sites: tuple[Site, ...]
    trained: tuple[str, ...]
    ruleset: RuleSet
    module: UtcGraphModule = field(repr=False)
    untied: tuple[str, ...] = ()
    tuner_dtype: TunerDtype = "float32"
    notes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    @cached_property
    def view(self) -> GraphView:
        """The index of the captured model's graph."""
        return index_of(self.module).view

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The number of elements of each parameter that `train:` selects; of a tied one under its first name."""
        named = dict(self.module.named_parameters(remove_duplicate=False))
        ties = ties_of(self.module)
        first: dict[str, int] = {}
        for name in self.trained:
            others = tied_to([name], ties, self.untied)
            if not any(other in first for other in others if name not in self.untied):
                first[name] = named[name].numel()
        return first

    @property
    def parameters(self) -> int:
        """The number of trained parameters: those of the tuners and of `train:`."""
        return sum(s.parameters for s in self.sites) + sum(self.sizes.values())

    def misses(self) -> Sequence[Miss]:
        """Where the rules nearly matched; computed on first use."""
        return self._missed

    @cached_property
    def _missed(self) -> list[Miss]:
        with index_of(self.module).engine({**library_patterns(), **self.ruleset.patterns}) as engine:
            return misses(self.ruleset, engine)

    def __reduce__(self) -> tuple[object, ...]:
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "module"}
        return _thawed, (type(self), self.module, _frozen(rest))

    @classmethod
    def of(cls, plan: PlanData) -> Self:
        """The same data as another class of plan."""
        return cls(**{f.name: getattr(plan, f.name) for f in fields(plan)})


def _frozen(value: object) -> bytes:
    """Data as bytes in which a node is its name; pickling the node itself would pickle its whole graph."""
    buffer = io.BytesIO()
    _Freezer(buffer).dump(value)
    return buffer.getvalue()


class _Freezer(pickle.Pickler):
    def persistent_id(self, obj: object) -> str | None:
        return obj.name if isinstance(obj, fx.Node) else None


class _Thawer(pickle.Unpickler):
    def __init__(self, data: bytes, graph: fx.Graph) -> None:
        super().__init__(io.BytesIO(data))
        self.nodes = {node.name: node for node in graph.nodes}

    def persistent_load(self, pid: object) -> fx.Node:
        return self.nodes[pid]


def _thawed(cls: type[PlanData], module: UtcGraphModule, data: bytes) -> PlanData:
    return cls(module=module, **_Thawer(data, module.graph).load())
