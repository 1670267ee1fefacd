"""`plan.diff(other)`: the sites that another plan adds, removes and changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from utcompile.matching.plan import PlanData
from utcompile.matching.sites import Site
from utcompile.text import alike, counted, run

Change = tuple[object, object]


@dataclass(frozen=True)
class SiteChange:
    """A site of both plans, with its differences: before and after, by the name of the setting.

    Attributes:
        site: the site in the other plan.
        changes: `{"dim": (10, 16), "parameters": (4234, 6352)}`.
    """

    site: Site
    changes: Mapping[str, Change]

    @property
    def id(self) -> str:
        """The identity of the site, equal in both plans."""
        return self.site.id


@dataclass(frozen=True)
class PlanDiff:
    """The changes from one plan to another; falsy where there are none.

    Attributes:
        added: sites that only the other plan has.
        removed: sites that only this plan has.
        changed: sites of one identity whose tuner, place or settings differ.
        trained: names that only the other plan's `train:` selects.
        untrained: names that only this plan's `train:` selects.
        parameters: the number of trained parameters, before and after.
    """

    added: tuple[Site, ...]
    removed: tuple[Site, ...]
    changed: tuple[SiteChange, ...]
    trained: tuple[str, ...]
    untrained: tuple[str, ...]
    parameters: tuple[int, int]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.trained or self.untrained)

    def to_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        before, after = self.parameters
        return {
            "added": [s.id for s in self.added],
            "removed": [s.id for s in self.removed],
            "changed": [
                {"id": c.id, **{k: {"before": a, "after": b} for k, (a, b) in c.changes.items()}} for c in self.changed
            ],
            "trained": {"added": list(self.trained), "removed": list(self.untrained)},
            "trainable_parameters": {"before": before, "after": after},
        }

    def __str__(self) -> str:
        if not self:
            return "the plans are the same"
        lines = [*_sites("-", self.removed), *_sites("+", self.added)]
        lines += _grouped("~", [(c.site, _changes(c.changes)) for c in self.changed])
        lines += [f"- train {name}" for name in self.untrained] + [f"+ train {name}" for name in self.trained]
        counts = ((self.added, "added"), (self.removed, "removed"), (self.changed, "changed"))
        sites = ", ".join(f"{len(found)} {word}" for found, word in counts if found) or "the same"
        before, after = self.parameters
        sign = "+" if after >= before else "-"
        return "\n".join(
            [
                *lines,
                f"sites: {sites}",
                f"parameters to train: {before:,} -> {after:,} ({sign}{abs(after - before):,})",
            ]
        )


def diff(before: PlanData, after: PlanData) -> PlanDiff:
    """Compare two plans of one model by the identity of their sites: rule name, module path and ordinal."""
    old, new = ({s.id: s for s in plan.sites} for plan in (before, after))
    both = [(old[key], site) for key, site in new.items() if key in old]
    return PlanDiff(
        tuple(s for key, s in new.items() if key not in old),
        tuple(s for key, s in old.items() if key not in new),
        tuple(SiteChange(b, found) for a, b in both if (found := _differences(a, b))),
        tuple(n for n in after.trained if n not in before.trained),
        tuple(n for n in before.trained if n not in after.trained),
        (before.parameters, after.parameters),
    )


def _differences(a: Site, b: Site) -> dict[str, Change]:
    """Form, tuner, its fields, what it reads and changes, and its parameters."""
    one_kind = a.tuner == b.tuner  # the fields of two kinds of tuner are not comparable
    first, second = (_settings(site, fields=one_kind) for site in (a, b))
    found = {k: (first.get(k), second.get(k)) for k in {**first, **second} if first.get(k) != second.get(k)}
    for key, nodes in (("source", ([a.source], [b.source])), ("target", (a.targets, b.targets))):
        names = tuple([n.name for n in side] for side in nodes)
        if key not in found and names[0] != names[1]:  # the pattern finds the capture at another value
            found[key] = (names[0], names[1])
    return found


def _settings(site: Site, *, fields: bool) -> dict[str, object]:
    config = site.config.model_dump(exclude={"kind"}) if fields else {}
    own = {"form": site.form, "tuner": site.tuner, **config, "reads": site.reads, "writes": site.writes}
    ports = {"source": site.build_from.source.name, "target": site.build_from.target.name}
    reader = {"for": site.reader.name if site.reader is not None else None}
    return {**own, **ports, **reader, "parameters": site.parameters}


def _changes(changes: Mapping[str, Change]) -> str:
    return ", ".join(f"{key} {_shown(a)} -> {_shown(b)}" for key, (a, b) in changes.items())


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return ", ".join(value) if isinstance(value, list) else "none" if value is None else str(value)


def _sites(sign: str, sites: Iterable[Site]) -> list[str]:
    return _grouped(sign, [(s, f"{s.form} {s.tuner}, {s.parameters:,} parameters") for s in sites])


def _grouped(sign: str, rows: Iterable[tuple[Site, str]]) -> list[str]:
    """One line per group of sites with the same rule, text and kind of path."""
    found: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for site, text in rows:
        found.setdefault((site.rule, alike(site.path), alike(text)), []).append((site.path, text))
    lines = []
    for (rule, _, _), all_ in found.items():
        paths, texts = zip(*all_, strict=True)
        each = f" ({counted(len(paths), 'site')}, each)" if len(paths) > 1 else ""
        lines.append(f"{sign} {rule} {run(paths)}{each}: {texts[0]}")
    return lines
