"""`match`: rules × graph -> `Plan`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from torch import fx

from utcompile.errors import UtcError
from utcompile.graph import Frame, GraphView, UtcGraphModule, collector_paused, info, place_of, value_of
from utcompile.match.chain import make_chain
from utcompile.match.conditions import enclosing, failing, within
from utcompile.match.engine import Bindings, Engine, Trace, shown
from utcompile.match.explain import Miss, nearest, too_few, too_many
from utcompile.match.fitting import Fitting
from utcompile.match.hints import absent, hint, other_attributes, scope_hint, unknown, unlisted
from utcompile.match.instead import instead
from utcompile.match.parameters import parameters_read
from utcompile.match.plan import Plan
from utcompile.match.sites import Site, make_site, merge_shared
from utcompile.match.skipped import Skipped
from utcompile.match.trained import find_trained
from utcompile.rules import (
    MatchModule,
    MatchOperation,
    MatchParameter,
    MatchPattern,
    Pattern,
    Rule,
    RuleSet,
    Scope,
    Select,
    library_patterns,
)


@collector_paused()
def match(
    captured: UtcGraphModule,
    rules: RuleSet | str | Path,
    vars: Mapping[str, Any] | None = None,
    rewriter: Callable[[Plan], Any] | None = None,
    train: Sequence[str] | None = None,
) -> Plan:
    """Find every place that a rule set speaks of.

    Args:
        captured: a `CapturedModule`.
        rules: a `RuleSet`, a path, a shipped name, or YAML text.
        vars: values for the rule file's `vars:`.
        rewriter: what `plan.apply()` calls.
        train: what is trained beside the tuners, instead of what the rules say.

    Raises:
        UtcError: a rule is malformed, matches fewer or more places than it expects, or its tuner does not fit a place.
    """
    ruleset = RuleSet.load(rules, vars=vars, train=train)
    view = GraphView(captured.graph, captured)
    engine = Engine(view, {**library_patterns(), **ruleset.patterns})
    fitting, sites, skipped = Fitting(), list[Site](), list[Skipped]()
    for rule in ruleset.rules:
        found = _matches(rule, engine)
        taken = select(_without_excluded(rule, found, engine), rule.select)
        _check_expect(rule, taken, len(found), engine, lambda: _misses(ruleset, engine))
        sites += _sites(rule, taken, view, fitting, skipped)
    chosen = find_trained(ruleset.train, engine, _covered)
    _check_sites(sites)
    misses = cache(lambda: _misses(ruleset, engine))
    found_sites = tuple(merge_shared(sites))
    return Plan(
        found_sites,
        chosen.names,
        ruleset,
        captured,
        view,
        misses,
        rewriter,
        chosen.untied,
        notes=chosen.notes,
        skipped=tuple(skipped),
    )


def select(found: Sequence[Bindings], how: Select) -> list[Bindings]:
    """`first`, `last` or `indices`, then `every`."""
    chosen = list(found)
    if how.first is not None:
        chosen = chosen[: how.first]
    elif how.last is not None:
        chosen = chosen[-how.last :]
    elif how.indices is not None:
        chosen = [found[i] for i in sorted({i % len(found) for i in how.indices if -len(found) <= i < len(found)})]
    return chosen[:: how.every] if how.every else chosen


def _matches(rule: Rule, engine: Engine) -> list[Bindings]:
    """One match an anchor, in graph order."""
    engine.start()
    try:
        found = (next(iter(_holding(rule, engine, candidates)), None) for candidates in _candidates(rule, engine))
        return [env for env in found if env is not None]
    except UtcError as error:
        raise UtcError(
            f"rule '{rule.name}': {error.what}", where=error.where or str(rule.mark), why=error.why, fix=error.fix
        ) from error


def _without_excluded(rule: Rule, found: Sequence[Bindings], engine: Engine) -> list[Bindings]:
    """The matches whose target no named pattern of `except:` covers."""
    covered = frozenset(n for name in rule.exclude for n in _covered(engine, engine.library[name]))
    return [env for env in found if engine.view.without_layout(env[rule.insert.target]) not in covered]


def _candidates(rule: Rule, engine: Engine) -> Iterator[Iterator[Bindings]]:
    """For each anchor, the ways to read the rule's match there."""
    view, wanted = engine.view, rule.match
    if isinstance(wanted, MatchPattern):
        for anchor in engine.anchors(wanted.pattern):
            yield engine.solve(wanted.pattern, anchor)
    elif isinstance(wanted, MatchOperation):
        # an operation is a pattern of one line
        for node in sorted({n for h in wanted.heads for n in view.by_class[h.name]}, key=view.position.__getitem__):
            if view.operations[node].inputs and any(engine.is_a(h, node) for h in wanted.heads):
                yield iter([{"x": view.operations[node].inputs[0], "h": node}])
    elif isinstance(wanted, MatchModule):
        yield from (iter([env]) for env in _module_calls(wanted, view))
    elif isinstance(wanted, MatchParameter):
        yield from (iter([env]) for env in parameters_read(wanted.parameter, view))


def _module_calls(wanted: MatchModule, view: GraphView) -> Iterator[Bindings]:
    scope = Scope(wanted.module, wanted.cls)
    for node in view.nodes:
        if value_of(node) is None:
            continue
        if node.op == "call_module" and within(scope, view.frames(node)[-1:]) and view.operations[node].inputs:
            yield {"x": view.operations[node].inputs[0], "y": node}
        for frame, read in zip(info(node).ends, info(node).ends_from, strict=True):
            if within(scope, [frame]) and read is not node:
                yield {"x": read, "y": node}


def _holding(rule: Rule, engine: Engine, candidates: Iterator[Bindings]) -> Iterator[Bindings]:
    """The candidates for which every constraint of the rule holds."""
    for env in candidates:
        failed = failing(rule.where, env, engine.view)
        if failed is not None:
            if engine.trace is not None:
                why, fix = unknown(failed[0], env, engine.view)
                reason = f"{failed[1]} in `where`{f': {why}' if why else ''}"
                engine.trace.constraint(failed[0].text, env[rule.insert.target], reason, fix)
            continue
        frames = scope_of(rule, env, engine.view)
        outside = [s for s in rule.inside if not within(s, frames)] or [s for s in rule.not_inside if within(s, frames)]
        if outside:
            if engine.trace is not None:
                kind = "inside" if outside[0] in rule.inside else "not_inside"
                where = " > ".join(f.path or "(root)" for f in frames) or "the root module"
                why, fix = scope_hint(outside[0], frames, env, engine.view) if kind == "inside" else ("", None)
                line = f"{kind}: {outside[0].module or outside[0].cls}"
                reason = f"the match is inside {where}{f'; {why}' if why else ''}"
                engine.trace.constraint(line, env[rule.insert.target], reason, fix)
            continue
        yield env


def scope_of(rule: Rule, env: Bindings, view: GraphView) -> tuple[Frame, ...]:
    """The module calls that enclose a match: what its pattern's lines assign, its free inputs aside."""
    wanted = rule.match
    if isinstance(wanted, MatchModule):
        called = Scope(wanted.module, wanted.cls)
        frames = view.frames(env["y"])
        ended = [f for f in info(env["y"]).ends if within(called, [f])]
        matched = ended[-1] if ended else frames[-1]
        return frames[: frames.index(matched) + 1] if matched in frames else (*frames, matched)
    if not isinstance(wanted, MatchPattern):
        return view.frames(env["h"])
    assigned = {t for s in wanted.pattern.spellings for step in s.steps for t in step.targets}
    nodes = [n for name, n in env.items() if name in assigned and not _stands_for_input(name, n, env, assigned)]
    return enclosing(nodes or [env[rule.insert.target]], view)


def _stands_for_input(name: str, node: fx.Node, env: Bindings, assigned: set[str]) -> bool:
    """`n = (norm | skip)(x)` with skip binds n to x itself, which another module made."""
    return any(node is other for key, other in env.items() if key not in assigned)


def _sites(
    rule: Rule, chosen: Sequence[Bindings], view: GraphView, fitting: Fitting, skipped: list[Skipped]
) -> list[Site]:
    """The sites of a rule; `skipped` is added to where the rule passes over what refuses its tuner."""
    if rule.insert.form == "chain":
        return make_chain(rule, chosen, view, lambda env: _path(rule, env, view))
    count: Counter[str] = Counter()
    result = []
    for env in chosen:
        path = _path(rule, env, view)
        ordinal = count[path]
        count[path] += 1  # what is passed over has its number too
        if rule.skips and _is_dead(env[rule.insert.target], view):
            skipped.append(Skipped(rule.name, path, "no output of the model depends on it"))
            continue
        try:
            result.append(make_site(rule, path, ordinal, env, view, fitting))
        except UtcError as error:
            if not rule.skips:
                raise
            skipped.append(Skipped.of(rule.name, path, error))
    return result


def _is_dead(node: fx.Node, view: GraphView) -> bool:
    """Whether the base computes a value for nothing; one that is written into memory may be read from there."""
    found, stack = {node}, [node]
    while stack:
        for reader in stack.pop().users:
            if reader.op == "output" or info(reader).mutates:
                return False
            if reader not in found:
                found.add(reader)
                stack.append(reader)
    return True


def _check_sites(sites: Sequence[Site]) -> None:
    """A parameter may carry one tuner of one rule."""
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
    rule: Rule, taken: Sequence[Bindings], before: int, engine: Engine, misses: Callable[[], list[Miss]]
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
        why, fix = too_many(rule, [_path(rule, env, engine.view) for env in taken], most)
    else:
        why, fix = unlisted(rule, taken, engine.view) or too_few(nearest(misses(), rule.name, 2), found=count > 0)
        why = "; ".join([*(instead(rule, engine) if count == 0 else ()), why])
    raise UtcError(
        f"rule '{rule.name}' matched {count} places{selected}, expected {wrong}", where=str(rule.mark), why=why, fix=fix
    )


def _misses(ruleset: RuleSet, engine: Engine) -> list[Miss]:
    """Match again, this time keeping what failed; costs nothing until it is asked for."""
    misses: list[Miss] = []
    for rule in ruleset.rules:
        engine.start()
        found: list[Bindings] = []
        before = len(misses)
        for candidates in _candidates(rule, engine):
            engine.trace = trace = Trace()
            matched = next(iter(_holding(rule, engine, candidates)), None)
            engine.trace = None
            if matched is not None:
                found.append(matched)
            elif trace.node is not None:
                fix = hint(trace, engine.view)
                misses.append(_miss(rule, trace.distance, trace.line, trace.node, trace.reason, fix))
        if isinstance(rule.match, MatchOperation):
            for node, line, reason, fix in other_attributes(rule.match, engine.view):
                misses.append(_miss(rule, (0, 0, 0), line, node, reason, fix))
        if not found and len(misses) == before:
            reason, fix = absent(rule, engine.view)
            misses.append(Miss(rule.name, "", (0, 0, 0), "", "", reason, fix))
        allowed = _without_excluded(rule, found, engine)
        taken = select(allowed, rule.select)
        for env in found:
            if not any(env is t for t in taken):
                word = "select" if any(env is a for a in allowed) else "except"
                reason = f"the rule matches here, and `{word}` leaves it out"
                path = _path(rule, env, engine.view)
                misses.append(_miss(rule, (-2, 0, 0), word, env[rule.insert.target], reason, path=path))
    return misses


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


def _path(rule: Rule, env: Bindings, view: GraphView) -> str:
    frames = scope_of(rule, env, view)
    return frames[-1].path if frames else ""


def _covered(engine: Engine, pattern: Pattern) -> frozenset[fx.Node]:
    """Every node that the lines of a pattern's matches make."""
    engine.start()
    found: set[fx.Node] = set()
    for anchor in engine.anchors(pattern):
        for env in engine.solve(pattern, anchor):  # all of them: an output may average two heads
            found.update(engine.view.without_layout(n) for n in _assigned(pattern, env))
    return frozenset(found)


def _assigned(pattern: Pattern, env: Bindings) -> list[fx.Node]:
    names = {t for s in pattern.spellings for step in s.steps for t in step.targets}
    return [n for name, n in env.items() if name in names]
