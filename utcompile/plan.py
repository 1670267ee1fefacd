"""`Plan`: what a rule set inserts into a captured model, before anything is changed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from types import NoneType

from utcompile.errors import UtcError, check_type
from utcompile.matching import PlanData, TunerDtype
from utcompile.matching.cost import PlanCost, plan_cost
from utcompile.matching.diff import PlanDiff, diff
from utcompile.matching.explain import Explanation, explain
from utcompile.matching.left_out import left_out
from utcompile.rewrite import TunedModule
from utcompile.start import insert_and_check
from utcompile.text import columns, counted, listed


@dataclass(frozen=True, kw_only=True)
class Plan(PlanData):
    """The sites of a rule set in a captured model, what they cost, and how they came about.

    A plan is data: it pickles with its captured model, and what is loaded again is applied as the plan itself.

    Example:
        >>> import torch, utcompile as utc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> captured = utc.capture(model, torch.randn(2, 4))
        >>> plan = utc.match(captured, "lora/all_linear", vars={"r": 2})
        >>> plan.sites[0].id, plan.sites[0].parameters
        ('linear/0/0', 24)
        >>> print(plan.diff(utc.match(captured, "lora/all_linear", vars={"r": 4})))
        ~ linear 0: r 2 -> 4, parameters 24 -> 48
        sites: 1 changed
        parameters to train: 42 -> 66 (+24)
    """

    @cached_property
    def left_out(self) -> tuple[str, ...]:
        """Where weights are tuned: the matrices of the model that are neither tuned nor trained."""
        return left_out(self.sites, self.trained, self.view)

    @cached_property
    def cost(self) -> PlanCost:
        """FLOPs and saved bytes at batch 1, counted when they are first needed."""
        return self.cost_at(1)

    def cost_at(self, batch: int) -> PlanCost:
        """FLOPs of the tuners' forward, and the bytes they save for backward, at a batch size."""
        return plan_cost(self.sites, self.view, batch)

    def apply(self, tuner_dtype: TunerDtype | None = None) -> TunedModule:
        """Insert the tuners: a `TunedModule` that computes what the model computes, until it is trained.

        This is `utcompile.start.insert_and_check`, which `utc.compile` and the command line call too: it states what
        must hold before, and checks what holds after.

        Args:
            tuner_dtype: of what trains, on a base in float16 or bfloat16: `float32` (the default), or the `base`'s.
        """
        return insert_and_check(self if tuner_dtype is None else replace(self, tuner_dtype=tuner_dtype))

    def diff(self, other: Plan) -> PlanDiff:
        """What another plan of the model adds, removes and changes: other rules, or other values of their variables."""
        if not isinstance(other, Plan):
            raise UtcError(
                f"a plan is compared with a Plan, not with {type(other).__name__}",
                fix="use utc.match",
                code="arguments/type",
            )
        return diff(self, other)

    def explanation(self, path: str | None = None) -> Explanation:
        """What each rule found, and where it nearly matched, at a module path or everywhere.

        Raises:
            UtcError: the model has no module of that path.
        """
        check_type(path, (str, NoneType), "path", "the path of a module, or None")
        return explain(self.sites, self.ruleset, self.misses, self.view, path)

    def explain(self, path: str | None = None) -> str:
        """The explanation as text."""
        return str(self.explanation(path))

    def to_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        keys = ("id", "rule", "path", "form", "tuner", "parameters", "reads", "writes", "how")
        sites = []
        for site in self.sites:
            cost = self.cost.sites.get(site.id)
            counts = {k: getattr(cost, k, None) for k in ("flops", "saved_bytes")}
            config = site.config.model_dump(mode="json", exclude={"kind"})
            measured = {"measured": site.measured.to_dict()} if site.measured else {}
            sites.append({**{k: getattr(site, k) for k in keys}, **counts, "config": config, **measured})
        return {
            "rules": self.ruleset.name,
            "sites": sites,
            "trained": list(self.trained),
            "left_out": list(self.left_out),
            "skipped": [s.to_dict() for s in self.skipped],
            "notes": list(self.notes),
            "trainable_parameters": self.parameters,
            "cost": self.cost.to_dict(),
        }

    def __str__(self) -> str:
        rows = [("rule", "at", "inserts", "reads", "changes", "parameters", "FLOPs", "saved")]
        for s in self.sites:
            where = (s.rule, s.path or "(root)", s.inserts, s.reads, s.writes)
            rows.append((*where, f"{s.parameters:,}", *self.cost.shown(s.id)))
        rows += [("train", name, "trained itself", "", "", f"{size:,}", "", "") for name, size in self.sizes.items()]
        return "\n".join([*columns(rows, right=3), *self.summary()])

    def _measured(self) -> dict[str, list[str]]:
        """What `how: measured` found, and the paths of the sites at which it found that."""
        found: dict[str, list[str]] = {}
        for site in self.sites:
            if site.measured is not None:
                found.setdefault(str(site.measured), []).append(site.path)
        return found

    def summary(self) -> list[str]:
        """What the tuners cost, where there are any, and how many sites and parameters there are."""
        counts = ", ".join(f"{n} {k}" for k, n in Counter(s.rule for s in self.sites).items())
        sites = f"{counted(len(self.sites), 'site')} ({counts})" if counts else "no sites"
        last = f"{sites}, {self.parameters:,} parameters to train"
        notes = [*(s.note for s in self.sites if s.note), *self.notes, *map(str, self.skipped)]
        notes += [f"measured: {listed(paths)}: {found}" for found, paths in self._measured().items()]
        if self.left_out:
            notes.append(f"left out: {counted(len(self.left_out), 'weight matrix')}: {listed(self.left_out)}")
        return [*notes, *([str(self.cost)] if self.sites else []), last]
