"""`docs/zoo.md`: the rows of the zoo as a page to read."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from tools.zoo.rows import STATUSES, Row
from utcompile.text import amount

_DONE = tuple(s for s in STATUSES if s != "built")
_LONGEST = 220  # characters of a reason
_INSTALLED = re.compile(r"/\S*/site-packages/")  # where libraries are installed on one machine
_HEAD = """# The zoo

This page shows what `utc.capture` makes of the models of timm, torchvision and transformers. `make zoo` writes it.
Do not edit it.

| word | meaning |
| --- | --- |
| *ok* | one graph, without closed modules |
| *opaque* | captured; some modules are one closed node, each with its reason |
| *not built* | the library itself cannot build or run the model here |
| *values* | the outputs and gradients were compared with those of the model, at the example's batch and at 2, 3 and 5 |
| *shapes* | captured without computing, on weights that were never written |

Shares are relative to the models that were built. Weights are random. An architecture of transformers is built from
its default configuration, made small. A resumed run keeps the rows of the run before, so rows may come from more
than one commit. Seconds were measured on a machine that did other work too.

Where values were compared, the capture was also called at batches of 1, 7 and 17, and at lengths around and beyond the
example's: *equal* to the model, *refused* by a guard (of these *false*: the graph would have been right), or *wrong*.
"""


def page(rows: Iterable[Row]) -> str:
    """The page in Markdown."""
    by_library: dict[str, list[Row]] = defaultdict(list)
    built: Counter[str] = Counter()
    for row in sorted(rows, key=lambda r: (r.library, r.name)):
        if row.status == "built":
            built[row.library] += 1
        else:
            by_library[row.library].append(row)
    parts = [_HEAD, _summary(by_library), _only_built(built), _beyond(by_library)]
    for library, found in by_library.items():
        parts += [f"## {library}\n", _slowest(found), _classes(found), _problems(found)]
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def counts(rows: Iterable[Row]) -> dict[str, int]:
    """How many rows have each status, in the order of `STATUSES`."""
    found = Counter(row.status for row in rows)
    return {status: found[status] for status in STATUSES if found[status]}


def _summary(by_library: dict[str, list[Row]]) -> str:
    lines = [_line("library", "models", "classes", *_DONE, "captured", "nothing closed", "values compared")]
    lines.append(_line("---", *["---:"] * (len(_DONE) + 5)))
    for library, rows in by_library.items():
        found = counts(rows)
        built = [r for r in rows if r.status != "not built"]
        captured = found.get("ok", 0) + found.get("opaque", 0)
        shares = (_share(captured, len(built)), _share(found.get("ok", 0), len(built)))
        values = sum(r.verified.startswith("values") for r in rows)
        classes = len({r.cls for r in built})
        lines.append(_line(library, len(rows), classes, *(found.get(s, 0) for s in _DONE), *shares, values))
    return "\n".join(lines) + "\n"


def _only_built(built: Mapping[str, int]) -> str:
    """The models that are counted nowhere else: a smaller one of their class stands for them."""
    told = [f"{n:,} more of {library}" for library, n in built.items()]
    if not told:
        return ""
    return f"{' and '.join(told)} were built and not captured: the smallest model of each class stands for them.\n"


def _beyond(by_library: dict[str, list[Row]]) -> str:
    """The calls at sizes that were not recorded, and every guard that refused one falsely."""
    lines = [_line("library", "equal", "refused", "false", "wrong", "guards"), _line("---", *["---:"] * 5)]
    for library, rows in by_library.items():
        counted = [sum(getattr(r, name) for r in rows) for name in ("equal", "refused", "false")]
        lines.append(_line(library, *counted, sum(len(r.wrong) for r in rows), sum(len(r.guards) for r in rows)))
    false: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for row in (r for rows in by_library.values() for r in rows if r.false):
        false[row.guards].append(row.name)
    if false:
        lines += ["", "Models of which a call was refused falsely, with all guards that they have:", ""]
        lines += [_line("models", "guards"), _line("---", "---")]
        ordered = sorted(false.items(), key=lambda item: (-len(item[1]), item[1]))
        lines += [_line(", ".join(names), "<br>".join(f"`{g}`" for g in guards)) for guards, names in ordered]
    return "\n".join(lines) + "\n"


def _slowest(rows: Sequence[Row], most: int = 5) -> str:
    shapes = sorted((r for r in rows if r.nodes), key=lambda r: -r.capture_seconds)[:most]
    told = ", ".join(f"{r.name} {r.capture_seconds:.1f} s ({r.nodes:,} nodes, {r.verify})" for r in shapes)
    return f"Slowest captures, verification included: {told}.\n" if told else ""


def _classes(rows: Sequence[Row]) -> str:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.cls:
            groups[row.cls].append(row)
    lines = [
        _line("class", "models", "parameters", "nodes", "seconds", "values", "pinned", "unread", "status"),
        _line("---", *["---:"] * 7, "---"),
    ]
    for cls, group in sorted(groups.items()):
        status = ", ".join(f"{n} {s}" if len(group) > 1 and n < len(group) else s for s, n in counts(group).items())
        compared = sum(r.verified.startswith("values") for r in group)
        pinned = sum(bool(r.pinned) for r in group)
        lines.append(
            _line(
                f"{cls}",
                len(group),
                _range([amount(p) for p in sorted(r.parameters for r in group)]),
                _range([f"{n:,}" for n in sorted(r.nodes for r in group if r.nodes)]),
                _range([f"{s:.1f}" for s in sorted(r.capture_seconds for r in group)]),
                compared or "",
                pinned or "",
                max(r.unreachable for r in group) or "",
                status,
            )
        )
    return "\n".join(lines) + "\n"


def _problems(rows: Sequence[Row]) -> str:
    """Every row that is not ok, with its reason."""
    parts = []
    for status in _DONE[1:]:
        found = [r for r in rows if r.status == status]
        if found:
            parts.append(f"### {rows[0].library}: {status}\n\n{_line('model', 'reason')}\n{_line('---', '---')}")
            parts += [_line(r.name, _reason(r)) for r in found]
            parts.append("")
    large = [r for r in rows if "values were not compared" in r.note]
    if large:
        parts.append(f"Captured, but too large here to compare values: {', '.join(r.name for r in large)}.\n")
    return "\n".join(parts)


def _reason(row: Row) -> str:
    text = _INSTALLED.sub("", " ".join((row.reason or row.note).split()))
    cut = text if len(text) <= _LONGEST else text[: _LONGEST - 2].rstrip() + " …"
    return cut.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _range(values: Sequence[str]) -> str:
    if not values:
        return ""
    return values[0] if values[0] == values[-1] else f"{values[0]}–{values[-1]}"  # noqa: RUF001


def _line(*cells: object) -> str:
    return f"| {' | '.join(str(c) for c in cells)} |"
