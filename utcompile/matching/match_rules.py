"""`match`: rules × graph -> `PlanData`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from utcompile.errors import UtcError
from utcompile.graph import UtcGraphModule, collector_paused, path_in
from utcompile.matching.engine import Bindings, Engine
from utcompile.matching.explain import nearest, too_few, too_many
from utcompile.matching.forms import Found
from utcompile.matching.hints import unlisted
from utcompile.matching.index import Index, index_of
from utcompile.matching.instead import instead
from utcompile.matching.misses import misses
from utcompile.matching.plan import PlanData
from utcompile.matching.search import covered, matches, path_of, select, without_excluded
from utcompile.matching.sites import Site, make_chain, make_site, merge_shared
from utcompile.matching.skipped import Skipped
from utcompile.matching.trained import find_trained
from utcompile.rules import ChainInsertion, Rule, RuleSet, Train, library_patterns


def match(
    captured: UtcGraphModule,
    rules: RuleSet | str | Path,
    vars: Mapping[str, object] | None = None,
    train: Sequence[str] | None = None,
) -> PlanData:
    """Find every site of a rule set.

    Args:
        captured: a `CapturedModule`; its index is stored with it for further matches.
        rules: a `RuleSet`, a path, a shipped name, or YAML text.
        vars: values for the rule file's `vars:`.
        train: what is trained in addition to the tuners, instead of the rules' `train:`.

    Raises:
        UtcError: a rule is malformed, has fewer or more sites than it expects, or its tuner does not fit a site.
    """
    ruleset = RuleSet.load(rules, vars=vars, train=train)
    return match_all({"": captured}, ruleset, {"": ruleset.train})[""]


@collector_paused()
def match_all(
    captured: Mapping[str, UtcGraphModule], ruleset: RuleSet, train: Mapping[str, Sequence[Train]]
) -> dict[str, PlanData]:
    """Match rules with several graphs as if they were one: `select` and `expect` count over all of them, in order.

    Args:
        captured: the graphs by their paths in one model.
        ruleset: the rules.
        train: by path, the lines of `train:` that select parameters there.

    Raises:
        UtcError: as `match`.
    """
    indexes = {path: index_of(module) for path, module in captured.items()}
    sites: dict[str, list[Site]] = {path: [] for path in captured}
    skipped: dict[str, list[Skipped]] = {path: [] for path in captured}
    with ExitStack() as stack:
        library = {**library_patterns(), **ruleset.patterns}
        engines = {path: stack.enter_context(index.engine(library)) for path, index in indexes.items()}
        for rule in ruleset.rules:
            found = {path: matches(rule, engine) for path, engine in engines.items()}
            left = [(p, env) for p, envs in found.items() for env in without_excluded(rule, envs, engines[p])]
            taken = select(left, rule.select)
            _check_expect(rule, taken, sum(map(len, found.values())), engines, ruleset)
            for path, index in indexes.items():
                chosen = [env for p, env in taken if p == path]
                sites[path] += _sites(rule, chosen, index, skipped[path])
        trained = {path: find_trained(train[path], engine, covered) for path, engine in engines.items()}
    for every in sites.values():
        _check_sites(every)
    return {
        path: PlanData(
            sites=tuple(merge_shared(sites[path])),
            trained=trained[path].names,
            untied=trained[path].untied,
            ruleset=ruleset,
            module=module,
            notes=trained[path].notes,
            skipped=tuple(skipped[path]),
        )
        for path, module in captured.items()
    }


def _sites(rule: Rule, chosen: Sequence[Bindings], index: Index, skipped: list[Skipped]) -> list[Site]:
    """The sites of a rule; sites that refuse the tuner of a rule with `on_refusal: skip` are appended to `skipped`."""
    view = index.view

    def found(env: Bindings) -> Found:
        return Found(rule=rule, path=path_of(rule, env, view), env=env, view=view, fitting=index.fitting)

    places = [found(env) for env in chosen]
    if isinstance(rule.insert, ChainInsertion):
        return make_chain(places)
    count: Counter[str] = Counter()
    result = []
    for one in places:
        ordinal = count[one.path]
        count[one.path] += 1  # a skipped site has its number too
        if rule.skips and one.env[rule.insert.target] not in index.used:
            skipped.append(Skipped(rule.name, one.path, "no output of the model depends on it"))
            continue
        try:
            result.append(make_site(one, ordinal))
        except UtcError as error:
            if not rule.skips:
                raise
            skipped.append(Skipped.of(rule.name, one.path, error))
    return result


def _check_sites(sites: Sequence[Site]) -> None:
    """Refuse a parameter that two rules tune."""
    owners: dict[str, Site] = {}
    for site in sites:
        for role, name in site.tunes.items():
            if name is None:
                continue
            first = owners.setdefault(name, site)
            if first.rule != site.rule:
                raise UtcError(
                    f"rules '{first.rule}' and '{site.rule}' both tune the {role} {name}",
                    fix="narrow one of them with `where:`, `inside:` or `except:`",
                    code="match/overlap",
                )


def _check_expect(
    rule: Rule,
    taken: Sequence[tuple[str, Bindings]],
    before: int,
    engines: Mapping[str, Engine],
    ruleset: RuleSet,
) -> None:
    expect, count = rule.expect, len(taken)
    if count == 0 and expect.optional:
        return
    wrong = None
    if expect.exactly is not None and count != expect.exactly:
        wrong = f"exactly {expect.exactly}"
    elif expect.exactly is None and count < expect.at_least:
        wrong = f"at least {expect.at_least}"
    elif expect.at_most is not None and count > expect.at_most:
        wrong = f"at most {expect.at_most}"
    if wrong is None:
        return
    selected = f" ({before} before `except` and `select`)" if before != count else ""
    most = expect.at_most if expect.exactly is None else expect.exactly
    if most is not None and count > most:
        why, fix = too_many(rule, [path_in(p, path_of(rule, env, engines[p].view)) for p, env in taken], most)
    else:
        why, fix = _missing(rule, taken, engines, ruleset)
    raise UtcError(
        f"rule '{rule.name}' matched {count} places{selected}, expected {wrong}",
        where=str(rule.mark),
        why=why,
        fix=fix,
        code="match/count",
    )


def _missing(
    rule: Rule, taken: Sequence[tuple[str, Bindings]], engines: Mapping[str, Engine], ruleset: RuleSet
) -> tuple[str, str]:
    """Why a rule matches too few places, and what to do about it."""
    for path, engine in engines.items():
        if found := unlisted(rule, [env for p, env in taken if p == path], engine.view):
            why, fix = found
            break
    else:
        near = [miss for engine in engines.values() for miss in misses(ruleset, engine)]
        why, fix = too_few(nearest(near, rule.name, 2), found=bool(taken))
    others = [one for engine in engines.values() for one in instead(rule, engine)] if not taken else []
    return "; ".join([*dict.fromkeys(others), why]), fix
