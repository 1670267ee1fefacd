"""Hints for a rule without a site: opaque modules, and the named patterns that the model has."""

from __future__ import annotations

from utcompile.matching.engine import Engine
from utcompile.rules import MatchPattern, Rule, library_patterns
from utcompile.text import listed


def instead(rule: Rule, engine: Engine) -> list[str]:
    """Opaque modules, inside which nothing is matched; and for a named pattern, the other named patterns of the model.

    For messages only, because it runs every named pattern.
    """
    said = []
    opaque = getattr(getattr(engine.view.module, "report", None), "opaque", ())
    if opaque:
        said.append(
            f"{listed([o.path for o in opaque])} {'is one node' if len(opaque) == 1 else 'are one node each'} of the "
            f"graph, and nothing inside is matched: {opaque[0].reason}"
        )
    if isinstance(rule.match, MatchPattern) and rule.match.pattern.name in library_patterns():
        found = {name: _count(name, engine) for name in library_patterns() if name != rule.match.pattern.name}
        here = [f"{n} {name}" for name, n in found.items() if n]
        if here:
            said.append(f"the model has these named patterns: {', '.join(here)}")
    return said


def _count(name: str, engine: Engine) -> int:
    engine.start()
    pattern = engine.library[name]
    return sum(next(engine.solve(pattern, anchor), None) is not None for anchor in engine.anchors(pattern))
