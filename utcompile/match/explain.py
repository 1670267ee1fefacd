"""Why a rule did not match: the deepest pattern line reached, the node it failed at, and the values that failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from utcompile.match.sites import Site
from utcompile.rules import RuleSet


@dataclass(frozen=True)
class Miss:
    """A place where a rule's pattern came some way and failed.

    Attributes:
        rule: the rule's name.
        path: the module path of the node it failed at.
        left: how many pattern lines were still to be read; -1 for a constraint, -2 for a match that was left out.
        line: the pattern line, `h = pointwise(n)`.
        node: the node, with its source line.
        reason: what the pattern wanted, and what is there.
    """

    rule: str
    path: str
    left: int
    line: str
    node: str
    reason: str

    def __str__(self) -> str:
        how = "leaves out" if self.left == -2 else "fails at"
        return f"{self.path or '(root)'}: `{self.line}` {how} {self.node}: {self.reason}"


def nearest(misses: Sequence[Miss], rule: str, count: int, path: str | None = None) -> list[Miss]:
    """The misses of a rule that came furthest, one a reason and place."""
    mine = [m for m in misses if m.rule == rule and (path is None or _under(m.path, path))]
    return sorted(dict.fromkeys(mine), key=lambda m: m.left)[:count]


def explain(sites: Sequence[Site], ruleset: RuleSet, misses: Sequence[Miss], path: str | None) -> str:
    """A text for each rule: its sites, then its nearest misses."""
    lines: list[str] = []
    for rule in ruleset.rules:
        mine = [s for s in sites if s.rule == rule.name and (path is None or _under(s.path, path))]
        place = f" at {path}" if path else ""
        lines.append(f"{rule.name}: {len(mine)} site{'s' * (len(mine) != 1)}{place}")
        lines += [f"  + {s.id}: {s.form} {s.tuner}, {s.reads} -> {s.writes}, {s.parameters:,} parameters" for s in mine]
        lines += [f"  - {m}" for m in nearest(misses, rule.name, 5 if path else 3, path)]
    return "\n".join(lines)


def _under(path: str, place: str) -> bool:
    """Whether a path is at a place, inside it, or just around it."""
    return path == place or path.startswith(f"{place}.") or place.startswith(f"{path}.")
