"""`Plan`: what a rule set inserts into a captured model, before anything is changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from utcompile.errors import UtcError
from utcompile.graph import GraphView, UtcGraphModule
from utcompile.match.explain import Miss, explain
from utcompile.match.sites import Site
from utcompile.rules import RuleSet


@dataclass(frozen=True)
class Plan:
    """The sites of a rule set in a captured model.

    Attributes:
        sites: what is inserted, in file order and, within a rule, in graph order.
        trained: names of the backbone's parameters that `train:` selects; they are cloned and trained.
        ruleset: the rules.
        module: the captured model; it stays as it is.

    Example:
        >>> import torch, utcompile as utc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> captured = utc.capture(model, torch.randn(2, 4))
        >>> plan = utc.match(captured, "lora/all_linear", vars={"r": 2})
        >>> plan.sites[0].id, plan.sites[0].parameters
        ('linear/0/0', 24)
    """

    sites: tuple[Site, ...]
    trained: tuple[str, ...]
    ruleset: RuleSet
    module: UtcGraphModule = field(repr=False)
    view: GraphView = field(repr=False)
    misses: Callable[[], list[Miss]] = field(repr=False)
    rewriter: Callable[[Plan], Any] | None = field(default=None, repr=False)

    @property
    def parameters(self) -> int:
        """How many parameters are trained: the tuners' and those of `train:`."""
        named = dict(self.module.named_parameters(remove_duplicate=False))
        return sum(s.parameters for s in self.sites) + sum(named[n].numel() for n in self.trained)

    def apply(self) -> Any:
        """Insert the tuners: a `TunedModule` that computes what the model computes, until it is trained."""
        if self.rewriter is None:
            raise UtcError("this plan was made without a rewriter", fix="make it with utcompile.match")
        return self.rewriter(self)

    def explain(self, path: str | None = None) -> str:
        """What each rule found, and where it nearly matched, at a module path or everywhere."""
        return explain(self.sites, self.ruleset, self.misses(), path)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        keys = ("id", "rule", "path", "form", "tuner", "parameters", "reads", "writes")
        return {
            "rules": self.ruleset.name,
            "sites": [{k: getattr(s, k) for k in keys} for s in self.sites],
            "trained": list(self.trained),
            "trainable_parameters": self.parameters,
        }

    def __str__(self) -> str:
        rows = [("rule", "at", "inserts", "reads", "changes", "parameters")]
        rows += [
            (s.rule, s.path or "(root)", f"{s.form} {s.tuner}", s.reads, s.writes, f"{s.parameters:,}")
            for s in self.sites
        ]
        named = dict(self.module.named_parameters(remove_duplicate=False))
        rows += [("train", n, "trained itself", "", "", f"{named[n].numel():,}") for n in self.trained]
        widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(r[:-1], widths, strict=False)) + "  " + r[-1].rjust(widths[-1])
            for r in rows
        ]
        counts = ", ".join(f"{n} {k}" for k, n in Counter(s.rule for s in self.sites).items())
        sites = f"{len(self.sites)} sites ({counts})" if counts else "no sites"
        return "\n".join([*lines, f"{sites}, {self.parameters:,} parameters to train"])
