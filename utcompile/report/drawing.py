"""Boxes as an SVG drawing: one axis from top to bottom, other ways on the left, tuners on the right."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

from utcompile.report.boxes import Box, TunerNote
from utcompile.report.container import Container
from utcompile.report.geometry import CHARACTER, LEAF, SUM, TUNER, Drawn
from utcompile.report.labels import behind, hint, short, title, tuner_text, width, word


@dataclass
class Pen:
    """What a drawing remembers.

    Attributes:
        is_live: it is part of a page whose script opens and closes boxes; else what has no tuner is closed for good.
        boxes: every box that is drawn, by its number in the drawing.
    """

    is_live: bool = False
    boxes: list[Box] = field(default_factory=list)

    def draw(self, box: Box) -> Drawn:
        """One box with all that is in it."""
        if box.kind == "sum":
            return self._sum(box)
        if box.kind in ("operation", "tuner") or not (box.has_tuner or self.is_live):
            return self._leaf(box)
        return Container(box, self.draw, self.number(box)).draw()

    def number(self, box: Box) -> str:
        """The attributes by which the page's script knows a box."""
        self.boxes.append(box)
        return f'data-box="{len(self.boxes) - 1}" tabindex="0" role="button"' if self.is_live else ""

    def _sum(self, box: Box) -> Drawn:
        half = SUM / 2
        markup = (
            f'<g class="sum" {self.number(box)}>{hint(box)}<circle cy="{half}" r="{half}"/>'
            f'<path d="M-5,{half}H5M0,{half - 5}V{half + 5}"/></g>'
        )
        return Drawn(half, half, SUM, markup)

    def _leaf(self, box: Box) -> Drawn:
        if box.kind == "tuner":
            return self._tuner(box)
        name, about = short(title(box)), short(word(box))
        half = (CHARACTER * len(name) + CHARACTER * len(about) + 8 * bool(name and about)) / 2 + 12
        kind = "module" if box.kind in ("module", "repeat") else "op"
        trained = " trained" if box.trained else ""
        gap = ' dx="8"' if name else ""
        height = max(LEAF, (TUNER + 6) * len(box.attached) - 6)
        parts = [
            f'<g class="leaf {kind}{trained}" {self.number(box)}>{hint(box)}',
            *behind(box, half, half, LEAF),
            f'<rect x="{-half:g}" width="{2 * half:g}" height="{height}" rx="5"/>',
            f'<text y="{height / 2 + 4:g}" text-anchor="middle"><tspan class="name">{escape(name)}</tspan>'
            f'<tspan class="word"{gap}>{escape(about)}</tspan></text></g>',
        ]
        right, y = half, 0.0
        for note in box.attached:
            wide = width(note)
            x = half + 16
            parts.append(
                f'<g class="tuner" {self.number(_of_note(note, box))}>'
                f'<path class="wire tuned" d="M{x:g},{y + 18:g}H{half + 1:g}" marker-end="url(#tip-t)"/>'
                f'<rect x="{x:g}" y="{y:g}" width="{wide:g}" height="{TUNER}" rx="12"/>'
                f"{tuner_text(note, x + wide / 2, y)}</g>"
            )
            right, y = max(right, x + wide), y + TUNER + 6
        return Drawn(half, right, height, "".join(parts))

    def _tuner(self, box: Box) -> Drawn:
        assert box.tuner is not None
        half = width(box.tuner) / 2
        markup = (
            f'<g class="tuner" {self.number(box)}>{hint(box)}'
            f'<rect x="{-half:g}" width="{2 * half:g}" height="{TUNER}" rx="12"/>{tuner_text(box.tuner, 0, 0)}</g>'
        )
        return Drawn(half, half, TUNER, markup)


def _of_note(note: TunerNote, box: Box) -> Box:
    return Box("tuner", "", note.kind, box.paths, box.shape, box.source, note.parameters, tuner=note)
