"""Match again, and keep the failures."""

from __future__ import annotations

from torch import fx

from utcompile.graph import place_of
from utcompile.matching.engine import Bindings, Engine, shown
from utcompile.matching.explain import Miss
from utcompile.matching.hints import absent, hint, other_attributes
from utcompile.matching.search import candidates, holding, path_of, select, without_excluded
from utcompile.matching.trace import Trace, Whole
from utcompile.rules import MatchOperation, Rule, RuleSet


def misses(ruleset: RuleSet, engine: Engine) -> list[Miss]:
    """Match again, and keep the nearest miss at each place."""
    result: list[Miss] = []
    for rule in ruleset.rules:
        engine.start()
        found: list[Bindings] = []
        before = len(result)
        for ways in candidates(rule, engine):
            engine.trace = trace = Trace()
            matched = next(iter(holding(rule, engine, ways)), None)
            engine.trace = None
            if matched is not None:
                found.append(matched)
            elif trace.node is not None:
                fix = hint(trace, engine.view)
                result.append(_miss(rule, trace.distance, trace.line, trace.node, trace.reason, fix))
        if isinstance(rule.match, MatchOperation):
            for node, line, reason, fix in other_attributes(rule.match, engine.view):
                result.append(_miss(rule, (0, 0, 0), line, node, reason, fix))
        if not found and len(result) == before:
            reason, fix = absent(rule, engine.view)
            result.append(Miss(rule.name, "", (0, 0, 0), "", "", reason, fix))
        allowed = without_excluded(rule, found, engine)
        taken = select(allowed, rule.select)
        for env in found:
            if not any(env is t for t in taken):
                word = "select" if any(env is a for a in allowed) else "except"
                reason = f"the rule matches here, and `{word}` leaves the match out"
                path = path_of(rule, env, engine.view)
                result.append(_miss(rule, (Whole.LEFT_OUT, 0, 0), word, env[rule.insert.target], reason, path=path))
    return result


def _miss(
    rule: Rule,
    distance: tuple[int, int, int],
    line: str,
    node: fx.Node,
    reason: str,
    fix: str | None = None,
    path: str | None = None,
) -> Miss:
    return Miss(rule.name, place_of(node) if path is None else path, distance, line, shown(node), reason, fix)
