"""`PartsPlan`: what a rule set inserts into parts of a model, before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from utcompile.errors import UtcError
from utcompile.graph import path_in
from utcompile.matching import Site, TunerDtype, require_sites
from utcompile.matching.explain import Explanation
from utcompile.matching.match_rules import match_all
from utcompile.measured_forms import decide_forms
from utcompile.parts import CapturedParts, insert_parts, lines_by_part
from utcompile.plan import Plan
from utcompile.rules import RuleSet
from utcompile.start import insert_and_check
from utcompile.text import counted


@dataclass(frozen=True, kw_only=True)
class PartsPlan:
    """The sites of a rule set in parts of a model; `apply()` gives the user's class with tuned parts.

    Attributes:
        captured: the parts, and the model around them.
        plans: a `Plan` by the path of its part.
        ruleset: the rules; `select` and `expect` count over all parts.
        trained: names of the parameters that `train:` selects, of the whole model.
        outside: those of them that are outside of the parts.
        notes: remarks on lines of `train:`.
        empty: the plans of the parts in which nothing is found; they stay as they are.

    Example:
        >>> import torch, utcompile as utc
        >>> body = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
        >>> model = torch.nn.Sequential(body, torch.nn.Linear(8, 2), torch.nn.Softmax(-1))
        >>> captured = utc.capture_parts(model, torch.randn(2, 4), within="0")
        >>> plan = utc.match(captured, "lora/all_linear", vars={"r": 2})
        >>> [site.id for site in plan.sites]
        ['linear/0.0/0']
    """

    captured: CapturedParts = field(repr=False)
    plans: Mapping[str, Plan]
    ruleset: RuleSet
    outside: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    empty: Mapping[str, Plan] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, captured: CapturedParts, ruleset: RuleSet, *, required: bool = True) -> PartsPlan:
        """Match a rule set with all parts.

        Args:
            required: whether something must be found; not where the plan is only explained.

        Raises:
            UtcError: as `utc.match`.
        """
        lines = lines_by_part(captured, ruleset)
        matched = match_all(captured.parts, ruleset, lines.inside)
        found = {path: decide_forms(plan, path) for path, plan in matched.items()}
        measured = {site: one for plan in found.values() for site, one in plan.ruleset.measured.items()}
        ruleset = replace(ruleset, measured=measured) if measured else ruleset
        every = {path: Plan.of(plan) for path, plan in found.items()}
        plans = {path: plan for path, plan in every.items() if plan.sites or plan.trained}
        if required and not plans and not lines.outside:
            require_sites(next(iter(found.values())))
        empty = {path: plan for path, plan in every.items() if path not in plans}
        return cls(
            captured=captured, plans=plans, ruleset=ruleset, outside=lines.outside, notes=lines.notes, empty=empty
        )

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of all parts, with the paths of the whole model."""
        return tuple(_in_whole(path, site) for path, plan in self.plans.items() for site in plan.sites)

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the parameters that `train:` selects."""
        inside = [path_in(path, name) for path, plan in self.plans.items() for name in plan.trained]
        return (*inside, *self.outside)

    @property
    def parameters(self) -> int:
        """The number of parameters to train."""
        outside = {name: self.captured.model.get_parameter(name) for name in self.outside}
        return sum(plan.parameters for plan in self.plans.values()) + sum(
            p.numel() for p in {id(p): p for p in outside.values()}.values()
        )

    def apply(self, tuner_dtype: TunerDtype | None = None) -> nn.Module:
        """The user's class with a `TunedModule` at each part's path; it computes what the model computes.

        Args:
            tuner_dtype: of what trains, on a base in float16 or bfloat16: `float32` (the default), or the `base`'s.
        """
        plans = (
            self.plans
            if tuner_dtype is None
            else {p: replace(x, tuner_dtype=tuner_dtype) for p, x in self.plans.items()}
        )
        return insert_parts(self.captured, plans, self.ruleset, self.outside, insert_and_check)

    def explain(self, path: str | None = None) -> str:
        """What each rule found, and where it nearly matched: in all parts, or at a path of the whole model.

        Raises:
            UtcError: the path is in no part.
        """
        found = self.explanations(path).items()
        return "\n".join(str(one) if path is not None else f"part {name}\n{one}" for name, one in found)

    def explanations(self, path: str | None = None) -> dict[str, Explanation]:
        """The same by part, with what makes the text.

        Raises:
            UtcError: the path is in no part.
        """
        every = {name: {**self.plans, **self.empty}[name] for name in self.captured.parts}
        if path is None:
            return {name: plan.explanation() for name, plan in every.items()}
        for name, plan in every.items():
            if path == name or path.startswith(f"{name}."):
                return {name: plan.explanation(path.removeprefix(name).removeprefix("."))}
        raise UtcError(
            f"{path!r:.80} is in none of the parts",
            fix=f"the parts are {', '.join(list(every)[:8])}",
            code="match/no-module",
        )

    def to_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        return {
            "rules": self.ruleset.name,
            "parts": {path: plan.to_dict() for path, plan in self.plans.items()},
            "trained_outside": list(self.outside),
            "notes": list(self.notes),
            "trainable_parameters": self.parameters,
        }

    def __str__(self) -> str:
        shown = [f"part {path}\n{plan}" for path, plan in self.plans.items()]
        return "\n".join([*shown, *self.summary()])

    def summary(self) -> list[str]:
        """What trains outside of the parts, remarks, and how many sites and parameters there are."""
        outside = [f"train {name}, outside of the parts" for name in self.outside]
        sites = counted(len(self.sites), "site")
        last = f"{sites} in {counted(len(self.plans), 'part')}, {self.parameters:,} parameters to train"
        return [*outside, *self.notes, last]


def _in_whole(path: str, site: Site) -> Site:
    inside = path_in(path, site.path)
    return replace(site, id=f"{site.rule}/{inside}{site.id.removeprefix(f'{site.rule}/{site.path}')}", path=inside)
