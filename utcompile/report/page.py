"""A page that stands alone: one HTML file with its style, script and data, light and dark, that loads nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from itertools import groupby

from utcompile.matching import PlanData
from utcompile.report.boxes import Box, TunerNote, boxes_of
from utcompile.report.drawing import Pen
from utcompile.report.labels import title
from utcompile.report.repeats import grouped
from utcompile.report.svg import DARK, LIGHT, STYLE, about_of, colours, graph, printable
from utcompile.rules import RuleSet
from utcompile.text import run

# nothing is loaded, from anywhere: also not by what a data set's texts may contain
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_MOST_PARTS = 8  # drawings of unlike parts on one page
_LINES = 7  # of a rule file, from the insertion upwards


@dataclass(frozen=True)
class Section:
    """One part of a page.

    Attributes:
        name: the anchor, and the title where there is none.
        body: HTML.
        wide: it takes the whole width.
    """

    name: str
    title: str
    body: str
    wide: bool = False


def page(name: str, sections: Sequence[Section]) -> str:
    """A whole page."""
    themes = (
        f":root{{{colours(LIGHT)}}}@media(prefers-color-scheme:dark){{:root{{{colours(DARK)}}}}}"
        f":root[data-theme=light]{{color-scheme:light;{colours(LIGHT)}}}"
        f":root[data-theme=dark]{{color-scheme:dark;{colours(DARK)}}}"
    )
    links = "".join(f'<a href="#{s.name}">{escape(s.title)}</a>' for s in sections) if len(sections) > 1 else ""
    body = "".join(_row(list(some)) for _, some in groupby(sections, key=lambda s: s.wide))
    return printable(
        '<!doctype html>\n<html lang="en" data-theme="auto"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}</title><style>{themes}{asset('page.css')}{STYLE}</style></head>"
        f'<body><header><h1>{escape(name)}</h1><nav>{links}</nav><button id="theme">theme: auto</button></header>'
        f"<main>{body}</main><script>{asset('page.js')}</script></body></html>\n"
    )


def _row(sections: Sequence[Section]) -> str:
    """Wide sections below one another; others in two columns that are filled one after the other."""
    text = "".join(f'<section id="{s.name}"><h2>{escape(s.title)}</h2>{s.body}</section>' for s in sections)
    return text if sections[0].wide or len(sections) == 1 else f'<div class="columns">{text}</div>'


def asset(name: str) -> str:
    """A file that pages contain."""
    return (files("utcompile.report") / "assets" / name).read_text(encoding="utf-8")


def plan_page(plan: PlanData) -> str:
    """The page of a plan: its drawing, to open, search and click, and what it costs."""
    return page(about_of(plan), [graph_section(plan)])


def parts_page(plans: Mapping[str, PlanData], about: str) -> str:
    """The page of the plans of a model's parts, by path: a drawing for all parts that are alike.

    Args:
        about: the title.
    """
    return page(about, graph_sections(plans))


def graph_sections(plans: Mapping[str, PlanData]) -> list[Section]:
    """The drawings of a model's parts, by path; of the whole model under the empty path."""
    alike: list[tuple[Box, list[str]]] = []
    for path, plan in plans.items():
        root = grouped(boxes_of(plan))
        same = next((paths for box, paths in alike if box.signature == root.signature), None)
        if same is None:
            alike.append((root, [path]))
        else:
            same.append(path)
    found = []
    for number, (root, paths) in enumerate(alike[:_MOST_PARTS]):
        title = f"What is inserted in {run(paths)}" if paths[0] else "What is inserted"
        found.append(_graph_section(plans[paths[0]], root, f"graph{number or ''}", title))
    if len(alike) > _MOST_PARTS:
        more = [path for _, paths in alike[_MOST_PARTS:] for path in paths]
        found.append(Section("more-parts", "More parts", f"<p>Not drawn: {escape(', '.join(more))}</p>", wide=True))
    return found


def graph_section(plan: PlanData) -> Section:
    """The drawing of a plan with its tools and the panel of details."""
    return graph_sections({"": plan})[0]


def _graph_section(plan: PlanData, root: Box, name: str, title: str) -> Section:
    pen = Pen(is_live=True)
    drawn = pen.draw(root)
    inputs = [f"{name} {shape}" for name, shape in root.inputs]
    facts = [_facts(box, plan.ruleset) for box in pen.boxes]
    ids = ("search", "count", "tuners", "open", "close", "details", "boxes")
    mark = {word: f'id="{word}" class="{word}"' if name == "graph" else f'class="{word}"' for word in ids}
    body = (
        f'<div class="tools"><input {mark["search"]} type="search" placeholder="module, operation, rule, tuner …"'
        f' aria-label="search the drawing"><span {mark["count"]}></span><button {mark["tuners"]}>tuners</button>'
        f"<button {mark['open']}>open all</button><button {mark['close']}>close all</button></div>"
        f'<div class="explorer"><div class="canvas">{graph(drawn, about_of(plan), "", inputs)}</div>'
        f'<aside {mark["details"]}><p class="soft">Click a box: its module, its source line, and the line of the rule '
        "that placed a tuner.</p></aside></div>"
        f'<script {mark["boxes"]} type="application/json">{_json(facts)}</script>'
    )
    return Section(name, title, body, wide=True)


def _facts(box: Box, ruleset: RuleSet) -> dict[str, object]:
    """What the page shows of a box that is clicked, and the text in which a search looks."""
    notes = [note for note in (box.tuner, *box.attached) if note is not None]
    words = [*box.paths, title(box), box.word, *(f"{n.rule} {n.form} {n.kind}" for n in notes)]
    return {
        "kind": box.kind,
        "title": title(box),
        "word": box.word,
        "paths": run(list(dict.fromkeys(box.paths))),
        "source": "" if box.source == "?" else box.source,
        "shape": box.shape,
        "parameters": box.parameters,
        "trained": box.trained,
        "flops": box.flops,
        "times": box.times,
        "tuners": [_tuner(note, ruleset) for note in notes],
        "find": " ".join(words).lower(),
    }


def _tuner(note: TunerNote, ruleset: RuleSet) -> dict[str, object]:
    keys = ("title", "rule", "form", "how", "parameters", "reads", "writes", "where", "config", "sites")
    return {**{key: getattr(note, key) for key in keys}, "text": _rule_text(note, ruleset)}


def _rule_text(note: TunerNote, ruleset: RuleSet) -> str:
    """The lines of the rule file from the rule's name to its insertion."""
    rule = next(r for r in ruleset.rules if r.name == note.rule)
    file, start, end = rule.mark.file, rule.mark.line, rule.insert.mark.line
    texts = [ruleset.text] if ruleset.path is None or str(ruleset.path) == file else []
    texts += [text for name, text in ruleset.included.items() if file.endswith(name)]
    for text in texts or [ruleset.text]:
        lines = text.splitlines()
        if end <= len(lines) and any(note.rule in line for line in lines[start - 1 : end]):
            return "\n".join(f"{i + 1:>3}  {lines[i]}" for i in range(start - 1, min(end, start + _LINES)))
    return ""


def _json(data: object) -> str:
    """JSON that no text in it can end."""
    return json.dumps(data, default=str).replace("<", "\\u003c")
