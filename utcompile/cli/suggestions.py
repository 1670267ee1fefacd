"""What each shipped rule file does in a model, and their order for a need."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from utcompile.cli import output
from utcompile.errors import UtcError
from utcompile.plain_data import JsonObject

if TYPE_CHECKING:
    from utcompile.cli.models import ModelChoice
    from utcompile.plan import Plan
    from utcompile.recording import CapturedModule
    from utcompile.rules import RuleSet

_ORDER = ("absorbed", "widened", "constant", "kept")
_MOST_WORDS = 60


@dataclass(frozen=True)
class Suggestion:
    """A rule file that fits a model.

    Attributes:
        parameters: of the tuners, without what `train:` names.
        trained: the parameters of what `train:` names, usually the head.
        flops, flops_share: of the tuners' forward at batch 1, before folding; and in relation to the model's.
        saved_bytes: for backward, at batch 1, by the tuners.
        folds: how many tuners end as what; for rules that state `widened` this was tried, for the others it is stated.
        side: whether the tuners are a side network, so that no gradient enters the backbone.
    """

    name: str
    sites: int
    parameters: int
    trained: int
    flops: int
    flops_share: float
    saved_bytes: int
    folds: dict[str, int]
    side: bool

    @property
    def folds_text(self) -> str:
        """`9 widened, 32 absorbed`."""
        return ", ".join(f"{self.folds[k]} {k}" for k in _ORDER if self.folds.get(k)) or "nothing to fold"

    @property
    def worst(self) -> int:
        """How far the tuners are from vanishing: 0 if all are absorbed, 3 if one is kept."""
        return max((_ORDER.index(k) for k, n in self.folds.items() if n), default=0)

    def key(self, need: str) -> tuple[float, ...]:
        """What it is sorted by; less is better."""
        capacity = -float(self.parameters)
        if need == "latency":
            # Without tuners nothing is slower, but the backbone does not adapt: a baseline, so last among its equals.
            return (self.worst, self.flops if self.worst else 0, capacity)
        if need == "memory":
            return (bool(self.sites) and not self.side, self.saved_bytes, self.parameters)
        if need == "parameters":
            return (self.parameters, self.worst)
        return (capacity, self.worst)

    def reason(self, need: str) -> str:
        """Why it comes where it does."""
        size = f"{self.parameters:,} parameters in {self.sites} places"
        if need == "latency":
            if not self.worst:
                return f"all its tuners vanish in folding, and among such rules it adapts most ({size})"
            return f"of its tuners {self.folds_text}; they add {100 * self.flops_share:.1f} % FLOPs before folding"
        if need == "memory":
            saved = f"its tuners save {self.saved_bytes / 1e6:.2f} MB per sample for backward"
            if not self.sites:
                return "it trains the head alone, so that nothing is saved in the backbone"
            return f"no gradient enters the backbone, and {saved}" if self.side else saved
        if need == "parameters":
            return f"it trains the fewest ({size}, and {self.trained:,} of what `train:` names)"
        return f"it has the most capacity ({size}); which rules are best for your data, only a measurement tells"

    def as_dict(self, need: str) -> JsonObject:
        """Plain data."""
        return {**vars(self), "reason": self.reason(need)}


def ranked(fitting: list[Suggestion], need: str) -> list[Suggestion]:
    """The best for a need first."""
    return sorted(fitting, key=lambda s: (*s.key(need), s.name))


def suggestions(choice: ModelChoice) -> tuple[list[Suggestion], dict[str, str]]:
    """The shipped rules that fit a model, and why the others do not, each in a word."""
    import utcompile as utc
    from utcompile.rules import RuleSet, shipped_rules

    output.progress(f"capturing {choice.spec}")
    captured = utc.capture(choice.build(), choice.inputs(), verify="shapes")
    fitting, refused = [], {}
    files = shipped_rules()
    for number, (name, path) in enumerate(files.items(), 1):
        rules = RuleSet.load(path)
        try:
            found = _suggestion(name, rules, captured)
        except UtcError as error:
            refused[name] = in_a_word(error, rules)
            continue
        if rules.rules and not found.sites:
            refused[name] = "all its rules are optional, and none finds a place"
            continue
        fitting.append(found)
        if number % 10 == 0:
            output.progress(f"{number} of {len(files)} rule files")
    return fitting, refused


def _suggestion(name: str, rules: RuleSet, captured: CapturedModule) -> Suggestion:
    import utcompile as utc
    from utcompile.tuners import ChainSite

    plan = utc.match(captured, rules)
    head = sum(plan.sizes.values())
    flops = plan.cost.flops if plan.sites else 0
    return Suggestion(
        name,
        len(plan.sites),
        plan.parameters - head,
        head,
        flops,
        flops / plan.cost.model_flops if flops and plan.cost.model_flops else 0.0,
        plan.cost.saved_bytes if plan.sites else 0,
        _folds(plan, rules),
        bool(plan.sites) and all(isinstance(site.build_from, ChainSite) for site in plan.sites),
    )


def _folds(plan: Plan, rules: RuleSet) -> dict[str, int]:
    """How many tuners end as what."""
    if not plan.sites:
        return {}
    if "widened" not in rules.folds:  # whether it is possible depends on the form alone
        return {rules.folds[0] if rules.folds else "kept": len(plan.sites)}
    import utcompile as utc

    try:
        _, report = utc.fold(plan.apply().eval())
    except UtcError:
        return {"kept": len(plan.sites)}
    return dict(Counter(str(site.status) for site in report.sites))


def in_a_word(error: UtcError, rules: RuleSet) -> str:
    """Why rules do not fit, in a few words."""
    from utcompile.cli.describe import matched

    what = error.what.splitlines()[0]
    name = what.partition("rule '")[2].partition("'")[0]
    if error.code == "match/count":
        sought = next((matched(rule.match) for rule in rules.rules if rule.name == name), name)
        return f"finds no {sought.removeprefix('every ')}" if " 0 places" in what else what[:_MOST_WORDS]
    if name and error.why:  # `rule 'a' at a place: …`
        what = error.why.splitlines()[0]
    return what if len(what) <= _MOST_WORDS else what[: _MOST_WORDS - 1].rstrip() + "…"
