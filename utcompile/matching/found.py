"""A plan without any site is an error in every command and function."""

from __future__ import annotations

from utcompile.errors import UtcError
from utcompile.matching.explain import nearest, too_few
from utcompile.matching.plan import PlanData


def require_sites(plan: PlanData) -> PlanData:
    """Return the plan if it has a site, or if it has no rules and trains parameters of the base.

    Raises:
        UtcError: the plan has neither; the error names the nearest misses.
    """
    rules = plan.ruleset.rules
    if plan.sites or (not rules and plan.trained):
        return plan
    if not rules:
        raise UtcError(
            "there are no rules, and no parameter is trained",
            why="; ".join(plan.notes) or None,
            fix="name the trained parameters with `train=`, --train or a line of train: in the rule file",
            code="match/nothing",
        )
    skipped = f"; {plan.skipped[0]}" if plan.skipped else ""
    near = [n for rule in rules for n in nearest(plan.misses(), rule.name, 1)]
    near.sort(key=lambda n: (not n.miss.node, n.miss.distance))
    raise UtcError(
        "none of the rules matches",
        why=f"all of them are optional: {', '.join(r.name for r in rules)}; "
        f"{too_few(near[:1], found=False)[0]}{skipped}",
        fix="`print(plan.explain())` or `utcompile explain` shows the nearest misses of each",
        code="match/nothing",
    )
