"""Charts as SVG that take their colours from the page: lines over epochs, and points with whiskers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 30, 40
WIDE, _PLOT = 540, 350  # of a scatter plot with and without its names
_DOTS = 60  # epochs with points that can be seen
_LINE = 13  # of a name
_LETTERS = 34


@dataclass(frozen=True)
class Series:
    """A line: its name and one value per step, from step 1 on."""

    name: str
    values: Sequence[float]


@dataclass(frozen=True)
class Point:
    """A point of a scatter plot; `spread` is the length of its whisker to either side, in y."""

    name: str
    x: float
    y: float
    spread: float = 0.0


@dataclass(frozen=True)
class _Scale:
    """From numbers to pixels."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.is_log else v for v in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        if self.is_log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            return [t for p in powers for t in (10.0**p,) if self.low <= t <= self.high] or [self.low, self.high]
        raw = (self.high - self.low) / 5 or 1.0
        power = 10.0 ** math.floor(math.log10(raw))
        step = next((power * m for m in (1, 2, 5, 10) if power * m >= raw), power * 10)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


def line_chart(title: str, series: Sequence[Series], form: str = "{:.3g}") -> str:
    """Lines over epochs; a value that is not finite leaves a gap."""
    shown = [v for one in series for v in one.values if math.isfinite(v)]
    if not shown:
        return ""
    epochs = max(len(one.values) for one in series)
    radius = 2.6 if epochs <= _DOTS else 1
    x = _Scale(1, max(epochs, 1), _LEFT, _WIDTH - _RIGHT)
    y = _scale(shown)
    parts = [_axes(title, x, y, form, "epoch", _HEIGHT, whole=True)]
    for number, one in enumerate(series, 1):
        points = [(i, v) for i, v in enumerate(one.values, 1) if math.isfinite(v)]
        path = "".join(f"{'L' if n else 'M'}{x(i)},{y(v)}" for n, (i, v) in enumerate(points))
        parts.append(f'<path class="c{number}" d="{path}"/>')
        parts += [
            f'<circle class="c{number}" cx="{x(i)}" cy="{y(v)}" r="{radius}"><title>{escape(one.name)}, epoch {i}: '
            f"{form.format(v)}</title></circle>"
            for i, v in points
        ]
        key = _LEFT + 96 * (number - 1)
        parts.append(
            f'<rect class="key{number}" x="{key}" y="{_HEIGHT - 12}" width="10" height="3"/>'
            f'<text x="{key + 15}" y="{_HEIGHT - 7}">{escape(one.name)}</text>'
        )
    return _chart(title, parts)


def scatter(title: str, points: Sequence[Point], unit: str, form: str = "{:.1%}") -> str:
    """Points with whiskers over an axis, and their names in a column on the right, each with a line to its point.

    The axis is logarithmic where the numbers span more than a decade.
    """
    points = [p for p in points if math.isfinite(p.x) and math.isfinite(p.y)]
    if not points:
        return ""
    low, high = min(p.x for p in points), max(p.x for p in points)
    is_log = low > 0 and high / low > 10
    more = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    ends = (low / 1.3, high * 1.3) if is_log else (low - more, high + more)
    height = max(_HEIGHT, _LINE * len(points) + _TOP + _BOTTOM)
    x = _Scale(*ends, _LEFT, _PLOT - _RIGHT, is_log)
    y = _scale([v for p in points for v in (p.y - p.spread, p.y + p.spread)], height)
    parts = [_axes(title, x, y, form, unit, height, whole=False)]
    places = [(x(p.x), y(p.y)) for p in points]
    for point, (cx, cy), at in zip(points, places, _column([cy for _, cy in places], height), strict=True):
        top, bottom = y(point.y + point.spread), y(point.y - point.spread)
        value = f"{form.format(point.y)} \N{PLUS-MINUS SIGN} {form.format(point.spread)}"
        hint = f"{point.name}: {value}, {unit} {point.x:,.4g}"
        name = _cut(point.name)
        parts.append(f'<path class="lead" d="M{cx + 4:g},{cy}L{_PLOT - 6},{at:g}h4"/>')
        parts.append(f'<path class="c1 whisker" d="M{cx},{top}V{bottom}M{cx - 4:g},{top}h8M{cx - 4:g},{bottom}h8"/>')
        parts.append(f'<circle class="c1" cx="{cx}" cy="{cy}" r="3.6"><title>{escape(hint)}</title></circle>')
        parts.append(
            f'<text class="name" x="{_PLOT + 2}" y="{at + 4:g}">{escape(name)}<title>{escape(hint)}</title></text>'
        )
    return _chart(title, parts, WIDE, height)


def _cut(name: str) -> str:
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS // 2 - 1]}…{name[-(_LETTERS // 2) :]}"


def _column(heights: Sequence[float], height: float) -> list[float]:
    """Where names at these heights go, from top to bottom without covering one another, each near its own height."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    places = [0.0] * len(heights)
    last, low = _TOP - _LINE / 2, height - _BOTTOM
    for number, index in enumerate(order):
        most = low - _LINE * (len(order) - 1 - number)  # so that the names below it fit
        last = places[index] = max(last + _LINE, min(heights[index], most))
    for index, after in zip(order[-2::-1], order[:0:-1], strict=True):  # up again where there is room above
        places[index] = min(places[index], places[after] - _LINE)
    return places


def _scale(values: Sequence[float], height: float = _HEIGHT) -> _Scale:
    low, high = min(values), max(values)
    more = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    return _Scale(low - more, high + more, height - _BOTTOM, _TOP)


def _axes(title: str, x: _Scale, y: _Scale, form: str, unit: str, height: float, *, whole: bool) -> str:
    right, low = x.end, height - _BOTTOM
    rows = "".join(
        f'<path class="grid" d="M{_LEFT},{y(t)}H{right}"/><text x="{_LEFT - 6}" y="{y(t) + 4:g}" text-anchor="end">'
        f"{form.format(t)}</text>"
        for t in y.ticks()
    )
    write: Callable[[float], str] = _short if not whole else lambda t: f"{t:.0f}"
    ticks = [t for t in x.ticks() if not whole or t == round(t)]
    columns = "".join(f'<text x="{x(t)}" y="{low + 14:g}" text-anchor="middle">{write(t)}</text>' for t in ticks)
    name = f'<text x="{right}" y="{low + 27:g}" text-anchor="end">{escape(unit)}</text>'
    return f'<text class="title" x="{_LEFT}" y="16">{escape(title)}</text>{rows}{columns}{name}'


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"


def _chart(title: str, parts: Sequence[str], width: int = _WIDTH, height: float = _HEIGHT) -> str:
    return (
        f'<svg class="chart" role="img" aria-label="{escape(title)}" viewBox="0 0 {width} {height:g}" width="{width}" '
        f'height="{height:g}">{"".join(parts)}</svg>'
    )
