"""A page that stands alone: one HTML file with its style, script and data, light and dark, that loads nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from itertools import groupby

from utcompile.matching import PlanData
from utcompile.report.boxes import Box, TunerNote, boxes_of
from utcompile.report.drawing import Pen
from utcompile.report.labels import title
from utcompile.report.repeats import grouped
from utcompile.report.svg import DARK, LIGHT, STYLE, about_of, colours, graph
from utcompile.rules import RuleSet
from utcompile.text import run

# nothing is loaded, from anywhere: also not by what a data set's texts may contain
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
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
    return (
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


def graph_section(plan: PlanData) -> Section:
    """The drawing of a plan with its tools and the panel of details."""
    root = grouped(boxes_of(plan))
    pen = Pen(is_live=True)
    drawn = pen.draw(root)
    inputs = [f"{name} {shape}" for name, shape in root.inputs]
    facts = [_facts(box, plan.ruleset) for box in pen.boxes]
    body = (
        '<div class="tools"><input id="search" type="search" placeholder="module, operation, rule, tuner …"'
        ' aria-label="search the drawing"><span id="count" class="soft"></span><button id="tuners">tuners</button>'
        '<button id="open">open all</button><button id="close">close all</button></div>'
        f'<div class="explorer"><div class="canvas">{graph(drawn, about_of(plan), "", inputs)}</div>'
        '<aside id="details"><p class="soft">Click a box: its module, its source line, and the line of the rule that '
        "placed a tuner.</p></aside></div>"
        f'<script id="boxes" type="application/json">{_json(facts)}</script>'
    )
    return Section("graph", "What is inserted", body, wide=True)


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
