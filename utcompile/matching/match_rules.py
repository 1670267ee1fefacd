"""`match`: rules × graph -> `PlanData`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from utcompile.errors import UtcError
from utcompile.graph import UtcGraphModule, collector_paused
from utcompile.matching.engine import Bindings, Engine
from utcompile.matching.explain import Miss, nearest, too_few, too_many
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
from utcompile.rules import ChainInsertion, Rule, RuleSet, library_patterns


@collector_paused()
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
    index = index_of(captured)
    sites, skipped = list[Site](), list[Skipped]()
    with index.engine({**library_patterns(), **ruleset.patterns}) as engine:
        for rule in ruleset.rules:
            found = matches(rule, engine)
            taken = select(without_excluded(rule, found, engine), rule.select)
            _check_expect(rule, taken, len(found), engine, lambda: misses(ruleset, engine))
            sites += _sites(rule, taken, index, skipped)
        chosen = find_trained(ruleset.train, engine, covered)
    _check_sites(sites)
    return PlanData(
        sites=tuple(merge_shared(sites)),
        trained=chosen.names,
        untied=chosen.untied,
        ruleset=ruleset,
        module=captured,
        notes=chosen.notes,
        skipped=tuple(skipped),
    )


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
                )


def _check_expect(
    rule: Rule, taken: Sequence[Bindings], before: int, engine: Engine, look_again: Callable[[], list[Miss]]
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
        why, fix = too_many(rule, [path_of(rule, env, engine.view) for env in taken], most)
    else:
        why, fix = unlisted(rule, taken, engine.view) or too_few(nearest(look_again(), rule.name, 2), found=count > 0)
        why = "; ".join([*(instead(rule, engine) if count == 0 else ()), why])
    raise UtcError(
        f"rule '{rule.name}' matched {count} places{selected}, expected {wrong}",
        where=str(rule.mark),
        why=why,
        fix=fix,
        code="match/count",
    )
