"""The table of `utcompile bench` as a picture: one bar per row, with its quartiles; plain SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from utcompile.deploy.benching import Timed

_LEFT, _BARS, _RIGHT, _ROW = 240, 420, 150, 24  # widths of names, bars and figures; the height of a row
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1a1a1a }
.back { fill: #ffffff } .bar { fill: #4477aa } .first { fill: #999999 } .whisker { stroke: #1a1a1a; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #e8e8e8 } .back { fill: #16181c } .bar { fill: #77aadd } .whisker { stroke: #e8e8e8 }
}
"""


def svg_of(rows: Sequence[Timed]) -> str:
    """A picture of medians; the whisker is from the lower to the upper quartile. Each group has its own scale."""
    parts: list[str] = []
    y = 8
    for (batch, threads), group in groupby(rows, lambda row: (row.batch, row.threads)):
        members = list(group)
        longest = max(row.upper for row in members) or 1.0
        y += _ROW
        title = f"batch {batch}, {threads} {'thread' if threads == 1 else 'threads'}"
        parts.append(f'<text x="8" y="{y - 7}" font-weight="600">{title}</text>')
        for index, row in enumerate(members):
            parts.append(_bar(row, y, _BARS / longest, "first" if index == 0 else "bar"))
            y += _ROW
    width = _LEFT + _BARS + _RIGHT
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + 8}" width="{width}" height="{y + 8}">'
    label = "<title>Latency: medians and quartiles in milliseconds</title>"
    back = f'<rect class="back" width="{width}" height="{y + 8}"/>'
    return "\n".join([head, label, f"<style>{_STYLE}</style>", back, *parts, "</svg>", ""])


def _bar(row: Timed, y: int, scale: float, kind: str) -> str:
    middle, low, high = y + _ROW // 2, _LEFT + row.lower * scale, _LEFT + row.upper * scale
    name = row.what if len(row.what) <= 34 else f"{row.what[:33]}…"
    return (
        f'<text x="{_LEFT - 8}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>'
        f'<rect class="{kind}" x="{_LEFT}" y="{y + 3}" width="{row.median * scale:.1f}" height="{_ROW - 6}"/>'
        f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>'
        f'<text x="{high + 6:.1f}" y="{middle + 4}">{row.median:.2f} ms, {row.ratio:.3f}</text>'
    )
