"""`svg_of`: a plan as one SVG file that follows the reader's light or dark theme."""

from __future__ import annotations

import re
from html import escape
from importlib.resources import files

from utcompile.matching import PlanData
from utcompile.report.boxes import boxes_of
from utcompile.report.drawing import Pen
from utcompile.report.geometry import Drawn
from utcompile.report.repeats import grouped
from utcompile.text import counted

LIGHT = {
    "page": "#ffffff",
    "ink": "#1c2430",
    "soft": "#667085",
    "line": "#98a2b3",
    "box": "#f3f5f8",
    "op": "#ffffff",
    "tuner": "#fff1d6",
    "tuned": "#c2570c",
    "trained": "#177245",
    "trained-box": "#e2f5ea",
    "blue": "#2563c9",
}
DARK = {
    "page": "#12161c",
    "ink": "#e6eaf0",
    "soft": "#98a2b3",
    "line": "#667085",
    "box": "#1a2029",
    "op": "#222a35",
    "tuner": "#3d2a10",
    "tuned": "#f5a04c",
    "trained": "#5fcf94",
    "trained-box": "#143524",
    "blue": "#7ab0ff",
}
STYLE = (files("utcompile.report") / "assets" / "graph.css").read_text(encoding="utf-8").replace("\n", "")
MARKERS = "".join(
    f'<marker id="{name}" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    f'<path class="{name}" d="M0,0.6L8,4L0,7.4z"/></marker>'
    for name in ("tip", "tip-t")
)
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_LEGEND = (("leaf op", "frozen operation"), ("leaf trained", "trained itself"), ("tuner", "tuner"))


def printable(text: str) -> str:
    """A text without control characters and halves of characters: names of files may have them, pages may not."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def colours(theme: dict[str, str]) -> str:
    """A theme as CSS variables."""
    return "".join(f"--{name}:{value};" for name, value in theme.items())


def svg_of(plan: PlanData) -> str:
    """A plan as an SVG drawing: modules as boxes, copies of a block once, tuners where they are inserted."""
    root = grouped(boxes_of(plan))
    drawn = Pen().draw(root)
    style = f"svg{{{colours(LIGHT)}}}@media(prefers-color-scheme:dark){{svg{{{colours(DARK)}}}}}{STYLE}"
    return printable(graph(drawn, about_of(plan), style, [f"{name} {shape}" for name, shape in root.inputs]))


def about_of(plan: PlanData) -> str:
    """What a plan does, in a line."""
    sites = counted(len(plan.sites), "site")
    return f"{plan.ruleset.name} in {type(plan.module).__name__}: {sites}, {plan.parameters:,} parameters to train"


def graph(drawn: Drawn, about: str, style: str, inputs: list[str]) -> str:
    """The `<svg>` element around a drawing."""
    left, right = max(drawn.left, 230) + 16, max(drawn.right, 230) + 22
    above = 58
    width, height = left + right, drawn.height + above + 50
    css = f"<style>{style}</style>" if style else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="graph" viewBox="{-left:g} {-above} {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" role="img" aria-label="{escape(about)}">{css}<defs>{MARKERS}</defs>'
        f'<rect class="page" x="{-left:g}" y="{-above}" width="{width:g}" height="{height:g}" fill="var(--page)"/>'
        f'<text class="name" x="{-left + 16:g}" y="-38">{escape(about)}</text>'
        f'<text class="shape" x="7" y="-14">{escape(", ".join(inputs))}</text>'
        f'<path class="wire" d="M0,-26V0" marker-end="url(#tip)"/>{drawn.markup}'
        f'<g class="legend"{"" if style else " display=none"}>{_legend(-left + 16, drawn.height + 14)}</g></svg>'
    )


def _legend(x: float, y: float) -> str:
    parts = []
    for name, text in _LEGEND:
        parts.append(
            f'<g class="{name}" transform="translate({x:g},{y:g})"><rect width="18" height="14" rx="4"/></g>'
            f'<text x="{x + 24:g}" y="{y + 11:g}" class="word">{text}</text>'
        )
        x += 24 + 7 * len(text) + 18
    return "".join(parts)
