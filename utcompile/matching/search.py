"""The matches of rules: their candidates, and which of these they take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from torch import fx

from utcompile.errors import UtcError
from utcompile.graph import Frame, GraphView, info, value_of
from utcompile.matching.conditions import enclosing, failing, within
from utcompile.matching.engine import Bindings, Engine
from utcompile.matching.hints import scope_hint, unknown
from utcompile.matching.parameters import parameters_read
from utcompile.rules import MatchModule, MatchOperation, MatchParameter, MatchPattern, Pattern, Rule, Scope, Select

T = TypeVar("T")


def select(found: Sequence[T], how: Select) -> list[T]:
    """`first`, `last` or `indices`, then `every`."""
    chosen = list(found)
    if how.first is not None:
        chosen = chosen[: how.first]
    elif how.last is not None:
        chosen = chosen[-how.last :]
    elif how.indices is not None:
        chosen = [found[i] for i in sorted({i % len(found) for i in how.indices if -len(found) <= i < len(found)})]
    return chosen[:: how.every] if how.every else chosen


def matches(rule: Rule, engine: Engine) -> list[Bindings]:
    """One match per anchor, in graph order."""
    engine.start()
    try:
        found = (next(iter(holding(rule, engine, ways)), None) for ways in candidates(rule, engine))
        return [env for env in found if env is not None]
    except UtcError as error:
        raise error.within(f"rule '{rule.name}'", where=str(rule.mark)) from error


def without_excluded(rule: Rule, found: Sequence[Bindings], engine: Engine) -> list[Bindings]:
    """The matches whose target no named pattern of `except:` covers."""
    left_out = frozenset(n for name in rule.exclude for n in covered(engine, engine.library[name]))
    return [env for env in found if engine.view.without_layout(env[rule.insert.target]) not in left_out]


def candidates(rule: Rule, engine: Engine) -> Iterator[Iterator[Bindings]]:
    """For each anchor, the ways to read the rule's match there."""
    view, match = engine.view, rule.match
    if isinstance(match, MatchPattern):
        for anchor in engine.anchors(match.pattern):
            yield engine.solve(match.pattern, anchor)
    elif isinstance(match, MatchOperation):
        # an operation is a pattern of one line
        for node in sorted({n for h in match.heads for n in view.by_class[h.name]}, key=view.position.__getitem__):
            if view.operations[node].inputs and any(engine.is_a(h, node) for h in match.heads):
                yield iter([{"x": view.operations[node].inputs[0], "h": node}])
    elif isinstance(match, MatchModule):
        yield from (iter([env]) for env in _module_calls(match, view))
    elif isinstance(match, MatchParameter):
        yield from (iter([env]) for env in parameters_read(match.parameter, view))


def _module_calls(match: MatchModule, view: GraphView) -> Iterator[Bindings]:
    scope = Scope(match.module, match.cls)
    for node in view.nodes:
        if value_of(node) is None:
            continue
        if node.op == "call_module" and within(scope, view.frames(node)[-1:]) and view.operations[node].inputs:
            yield {"x": view.operations[node].inputs[0], "y": node}
        for frame, read in zip(info(node).ends, info(node).ends_from, strict=True):
            if within(scope, [frame]) and read is not node:
                yield {"x": read, "y": node}


def holding(rule: Rule, engine: Engine, ways: Iterator[Bindings]) -> Iterator[Bindings]:
    """The candidates that satisfy every constraint of the rule."""
    for env in ways:
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
    """The module calls that enclose a match: the nodes that its lines assign, without its free inputs."""
    match = rule.match
    if isinstance(match, MatchModule):
        called = Scope(match.module, match.cls)
        frames = view.frames(env["y"])
        ended = [f for f in info(env["y"]).ends if within(called, [f])]
        matched = ended[-1] if ended else frames[-1]
        return frames[: frames.index(matched) + 1] if matched in frames else (*frames, matched)
    if not isinstance(match, MatchPattern):
        return view.frames(env["h"])
    assigned = {t for s in match.pattern.spellings for step in s.steps for t in step.targets}
    nodes = [n for name, n in env.items() if name in assigned and not _is_input(name, n, env, assigned)]
    return enclosing(nodes or [env[rule.insert.target]], view)


def _is_input(name: str, node: fx.Node, env: Bindings, assigned: set[str]) -> bool:
    """Whether a name is a free input: `n = (norm | skip)(x)` with skip binds n to x, which another module made."""
    return any(node is other for key, other in env.items() if key not in assigned)


def path_of(rule: Rule, env: Bindings, view: GraphView) -> str:
    """The module path of a match: the innermost call that encloses it."""
    frames = scope_of(rule, env, view)
    return frames[-1].path if frames else ""


def covered(engine: Engine, pattern: Pattern) -> frozenset[fx.Node]:
    """Every node that the lines of a pattern's matches assign."""
    engine.start()
    found: set[fx.Node] = set()
    for anchor in engine.anchors(pattern):
        for env in engine.solve(pattern, anchor):  # all of them: an output may average two heads
            found.update(engine.view.without_layout(n) for n in _assigned(pattern, env))
    return frozenset(found)


def _assigned(pattern: Pattern, env: Bindings) -> list[fx.Node]:
    names = {t for s in pattern.spellings for step in s.steps for t in step.targets}
    return [n for name, n in env.items() if name in names]
