"""A rule file that finds nothing at all is an error through every door."""

from __future__ import annotations

from utcompile.errors import UtcError
from utcompile.matching.explain import nearest, too_few
from utcompile.matching.plan import PlanData


def require_sites(plan: PlanData) -> PlanData:
    """The plan, where its rules have found a place, or where there are no rules and something is trained itself.

    Raises:
        UtcError: with what the rules nearly found.
    """
    rules = plan.ruleset.rules
    if plan.sites or (not rules and plan.trained):
        return plan
    if not rules:
        raise UtcError(
            "there are no rules, and nothing is trained",
            why="; ".join(plan.notes) or None,
            fix="say what is trained with `train=`, --train or a line of train: in the rule file",
            code="match/nothing",
        )
    skipped = f"; {plan.skipped[0]}" if plan.skipped else ""
    near = [n for rule in rules for n in nearest(plan.misses(), rule.name, 1)]
    near.sort(key=lambda n: (not n.miss.node, n.miss.distance))
    raise UtcError(
        "none of the rules found a place",
        why=f"all of them may find nothing: {', '.join(r.name for r in rules)}; "
        f"{too_few(near[:1], found=False)[0]}{skipped}",
        fix="`print(plan.explain())` or `utcompile explain` shows what each nearly found",
        code="match/nothing",
    )
