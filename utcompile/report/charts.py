"""Charts as SVG that take their colours from the page: lines over epochs, and points with whiskers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 30, 40


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
    x = _Scale(1, max(epochs, 1), _LEFT, _WIDTH - _RIGHT)
    y = _scale(shown)
    parts = [_axes(title, x, y, form, "epoch", whole=True)]
    for number, one in enumerate(series, 1):
        points = [(i, v) for i, v in enumerate(one.values, 1) if math.isfinite(v)]
        path = "".join(f"{'L' if n else 'M'}{x(i)},{y(v)}" for n, (i, v) in enumerate(points))
        parts.append(f'<path class="c{number}" d="{path}"/>')
        parts += [
            f'<circle class="c{number}" cx="{x(i)}" cy="{y(v)}" r="2.6"><title>{escape(one.name)}, epoch {i}: '
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
    """Points with whiskers and names over an axis; a logarithmic one where the numbers span more than a decade."""
    points = [p for p in points if math.isfinite(p.x) and math.isfinite(p.y)]
    if not points:
        return ""
    low, high = min(p.x for p in points), max(p.x for p in points)
    is_log = low > 0 and high / low > 10
    more = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    ends = (low / 1.3, high * 1.3) if is_log else (low - more, high + more)
    x = _Scale(*ends, _LEFT, _WIDTH + 120 - _RIGHT, is_log)
    y = _scale([v for p in points for v in (p.y - p.spread, p.y + p.spread)])
    parts = [_axes(title, x, y, form, unit, whole=False)]
    places = [(x(p.x), y(p.y)) for p in points]
    labels = _labels([p.name for p in points], places)
    for point, (cx, cy), (start, at) in zip(points, places, labels, strict=True):
        top, bottom = y(point.y + point.spread), y(point.y - point.spread)
        value = f"{form.format(point.y)} \N{PLUS-MINUS SIGN} {form.format(point.spread)}"
        hint = f"{point.name}: {value}, {unit} {point.x:,.4g}"
        parts.append(f'<path class="c1 whisker" d="M{cx},{top}V{bottom}M{cx - 4},{top}h8M{cx - 4},{bottom}h8"/>')
        parts.append(f'<circle class="c1" cx="{cx}" cy="{cy}" r="3.6"><title>{escape(hint)}</title></circle>')
        parts.append(f'<text x="{start:g}" y="{at:g}">{escape(point.name)}</text>')
    return _chart(title, parts, _WIDTH + 120)


def _labels(names: Sequence[str], places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Where each name begins: near its point, where it covers no point and no name; else to the right of it."""
    taken = [(cx - 5, cy - 5, cx + 5, cy + 5) for cx, cy in places]
    found = []
    for name, (cx, cy) in zip(names, places, strict=True):
        wide = 5.8 * len(name)
        tries = [
            (start, cy + 4 + shift) for shift in (0, -12, 12, -24, 24, -36, 36) for start in (cx + 8, cx - 8 - wide)
        ]
        free = [at for at in tries if _fits(at, wide, taken)]
        start, at = free[0] if free else tries[0]
        taken.append((start, at - 10, start + wide, at + 2))
        found.append((start, at))
    return found


def _fits(at: tuple[float, float], wide: float, taken: Sequence[tuple[float, float, float, float]]) -> bool:
    left, top, right, bottom = at[0], at[1] - 10, at[0] + wide, at[1] + 2
    inside = left >= _LEFT and right <= _WIDTH + 118 and top >= _TOP - 12 and bottom <= _HEIGHT - _BOTTOM
    return inside and all(right < a or c < left or bottom < b or d < top for a, b, c, d in taken)


def _scale(values: Sequence[float]) -> _Scale:
    low, high = min(values), max(values)
    more = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    return _Scale(low - more, high + more, _HEIGHT - _BOTTOM, _TOP)


def _axes(title: str, x: _Scale, y: _Scale, form: str, unit: str, *, whole: bool) -> str:
    right = x.end
    rows = "".join(
        f'<path class="grid" d="M{_LEFT},{y(t)}H{right}"/><text x="{_LEFT - 6}" y="{y(t) + 4:g}" text-anchor="end">'
        f"{form.format(t)}</text>"
        for t in y.ticks()
    )
    write: Callable[[float], str] = _short if not whole else lambda t: f"{t:.0f}"
    ticks = [t for t in x.ticks() if not whole or t == round(t)]
    columns = "".join(
        f'<text x="{x(t)}" y="{_HEIGHT - _BOTTOM + 14}" text-anchor="middle">{write(t)}</text>' for t in ticks
    )
    name = f'<text x="{right}" y="{_HEIGHT - _BOTTOM + 27}" text-anchor="end">{escape(unit)}</text>'
    return f'<text class="title" x="{_LEFT}" y="16">{escape(title)}</text>{rows}{columns}{name}'


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"


def _chart(title: str, parts: Sequence[str], width: int = _WIDTH) -> str:
    return (
        f'<svg class="chart" role="img" aria-label="{escape(title)}" viewBox="0 0 {width} {_HEIGHT}" width="{width}" '
        f'height="{_HEIGHT}">{"".join(parts)}</svg>'
    )
