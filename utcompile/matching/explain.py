"""Why a rule did not match: the deepest pattern line that was reached, the node at which it failed, and the values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from utcompile.errors import UtcError
from utcompile.graph import GraphView
from utcompile.matching.places import nearest_path, places
from utcompile.matching.sites import Site
from utcompile.matching.trace import Whole
from utcompile.rules import Rule, RuleSet
from utcompile.text import alike, counted, groups, listed, run

_OPTIONAL = "set `expect: {optional: true}`"
_SHOWN = 5  # misses of a rule that found nothing, or at one place; of another rule, two


@dataclass(frozen=True)
class Miss:
    """A place where a rule's pattern failed; without a node, the reason why the pattern could begin nowhere.

    Attributes:
        rule: the rule's name.
        path: the module path of the node at which it failed.
        distance: the distance to a match: pattern lines still to be read, or a `Whole`; calls of the line still to be
            read; and how unlike the node is.
        line: the pattern line, `h = pointwise(n)`.
        node: the node, with its source line.
        reason: what the pattern needs, and what the node is.
        fix: how to change the rule, where that is known.
    """

    rule: str
    path: str
    distance: tuple[int, int, int]
    line: str
    node: str
    reason: str
    fix: str | None = None

    def __str__(self) -> str:
        return f"{self.path or '(root)'}: {self.failed(self.node)}: {self.reason}" if self.node else self.reason

    def failed(self, node: str) -> str:
        """The pattern line, and the node."""
        return f"`{self.line}` {'leaves out' if self.distance[0] == Whole.LEFT_OUT else 'fails at'} {node}"

    @property
    def short_node(self) -> str:
        """The node without its module, where that is the path."""
        return self.node.replace(f" in {self.path or 'the root module'} (", " (", 1)


Misses = Callable[[], Sequence[Miss]]


@dataclass(frozen=True)
class Near:
    """A miss, and the places where a copy of the same block was missed for the same reason."""

    miss: Miss
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.miss}{f' (and {len(self.others)} more like it)' if self.others else ''}"

    def to_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        keys = ("path", "line", "node", "reason", "fix")
        return {**{k: getattr(self.miss, k) for k in keys}, "alike": list(self.others)}


@dataclass(frozen=True)
class RuleExplanation:
    """The sites of one rule, and its nearest misses, the nearest first."""

    rule: str
    sites: tuple[Site, ...]
    near: tuple[Near, ...]

    def to_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        return {"rule": self.rule, "sites": [s.id for s in self.sites], "near": [n.to_dict() for n in self.near]}


@dataclass(frozen=True)
class Explanation:
    """The sites of each rule of a plan, and where it nearly matched.

    Attributes:
        rules: in file order.
        path: the explained module path; None for the whole model.
    """

    rules: tuple[RuleExplanation, ...]
    path: str | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        return {"path": self.path, "rules": [rule.to_dict() for rule in self.rules]}

    def __str__(self) -> str:
        return "\n".join(line for rule in self.rules for line in self._lines(rule))

    def _lines(self, rule: RuleExplanation) -> Iterator[str]:
        place = f" at {self.path or '(root)'}" if self.path is not None else ""
        yield f"{rule.rule}: {counted(len(rule.sites), 'site')}{place}"
        yield from _found(rule.sites)
        for near in rule.near:
            yield from _missed(near)
        if not rule.sites and not rule.near:
            yield "  - no operation here can be the last line of its pattern"


def nearest(misses: Iterable[Miss], rule: str, count: int, path: str | None = None) -> list[Near]:
    """The nearest misses of a rule; copies of one block count once."""
    found: dict[tuple[object, ...], list[Miss]] = {}
    mine = (m for m in misses if m.rule == rule and (path is None or not m.node or _under(m.path, path)))
    for miss in sorted(dict.fromkeys(mine), key=lambda m: m.distance):
        key = (miss.distance, miss.line, alike(miss.path), _nameless(miss.reason))
        found.setdefault(key, []).append(miss)
    return [Near(first, tuple(dict.fromkeys(m.path for m in rest))) for first, *rest in found.values()][:count]


def explain(sites: Sequence[Site], ruleset: RuleSet, misses: Misses, view: GraphView, path: str | None) -> Explanation:
    """Each rule's sites and nearest misses, at a module path or everywhere.

    Raises:
        UtcError: the model has no module of that path.
    """
    if path is not None:
        known = [*places(view), *(s.path for s in sites)]
        if path not in known:
            raise UtcError(f"the model has no module {path!r}", fix=nearest_path(path, known))
    missed = misses()
    explained = []
    for rule in ruleset.rules:
        mine = tuple(s for s in sites if s.rule == rule.name and (path is None or _under(s.path, path)))
        count = _SHOWN if path is not None or not mine else 2
        explained.append(RuleExplanation(rule.name, mine, tuple(nearest(missed, rule.name, count, path))))
    return Explanation(tuple(explained), path)


def too_few(near: Sequence[Near], *, found: bool) -> tuple[str, str]:
    """Why a rule has fewer sites than it expects, by its nearest misses, and how to fix it."""
    if not near:
        return (
            "every operation that could be the pattern's last line already matches",
            "expect fewer sites, or write another rule",
        )
    why = "; next: ".join(map(str, near))
    general = f"run `utcompile explain` with this rule, or {'adjust `expect:`' if found else _OPTIONAL}"
    hint = near[0].miss.fix
    return f"nearest miss: {why}" if near[0].miss.node else why, f"{hint}; {general}" if hint else general


def too_many(rule: Rule, paths: Sequence[str], most: int) -> tuple[str, str]:
    """Where a rule has more sites than it expects, and how to narrow it."""
    by_kind = groups(paths)
    fixes = []
    for kind, all_ in by_kind.items():
        glob = kind if len(all_) > 1 else all_[0]
        if len(all_) == len(paths) - most and len(by_kind) > 1 and glob:
            fixes.append(f"leave out {run(all_)} with not_inside: {{module: {glob!r}}}")
        elif len(all_) == most and len(by_kind) > 1 and glob:
            fixes.append(f"keep {run(all_)} with inside: {{module: {glob!r}}}")
    narrow = "narrow it with `inside:`, `where:`, `except:` or `select:`"
    return f"it matches at {listed(paths, 12)}", "; or ".join([*fixes[:2], f"{narrow}; or expect {len(paths)}"])


def _found(sites: Sequence[Site]) -> Iterator[str]:
    alikes: dict[tuple[object, ...], list[Site]] = {}
    for s in sites:
        alikes.setdefault((alike(s.path), s.form, s.tuner, s.reads, s.writes, s.parameters), []).append(s)
    for first, *rest in alikes.values():
        shapes = " -> ".join(dict.fromkeys((first.reads, first.writes)))
        yield f"  + {first.id}: {first.form} {first.tuner}, {shapes}, {first.parameters:,} parameters"
        if rest:
            yield f"      … and {len(rest)} more like it: {run([s.path for s in rest])}"


def _missed(near: Near) -> Iterator[str]:
    miss = near.miss
    if miss.node:
        yield f"  - {miss.path or '(root)'}"
        yield f"      {miss.failed(miss.short_node)}"
        yield f"      {miss.reason}"
    else:
        yield f"  - {miss.reason}"
    if miss.fix:
        yield f"      fix: {miss.fix}"
    if near.others:
        yield f"      … and {len(near.others)} more like it: {run(near.others)}"


def _nameless(reason: str) -> str:
    """A reason without the numbers of nodes and paths: `add_3` and `add` are alike, 768 and 384 are not."""
    return re.sub(r"(?<=[A-Za-z])_?\d+|(?<=[_.])\d+", "", reason)


def _under(path: str, place: str) -> bool:
    """Whether a path is at a place, inside it, or just around it."""
    return path == place or not place or path.startswith(f"{place}.") or place.startswith(f"{path}.")
