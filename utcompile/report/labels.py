"""The texts of a drawing: titles of boxes, tuners, hints."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from utcompile.report.boxes import Box, TunerNote
from utcompile.report.geometry import CHARACTER, SMALL
from utcompile.text import amount, run

_LONGEST = 56  # characters of a name


def title(box: Box) -> str:
    """Its name; of copies, the run of their paths."""
    several = list(dict.fromkeys(box.paths))
    if box.times > 1 and (len(several) > 1 or box.kind == "repeat"):
        return run(several)
    return box.name


def short(name: str) -> str:
    """A name as a drawing shows it: of a long one the beginning and the end."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2]}…{name[-_LONGEST // 2 :]}"


def word(box: Box) -> str:
    """What it is, how often, and its parameters."""
    times = f" \N{MULTIPLICATION SIGN}{box.times}" if box.times > 1 else ""
    name = "" if box.kind == "repeat" else box.word.rpartition(".")[2] if box.kind != "group" else box.word
    size = f" · {amount(box.parameters)}" if box.kind in ("module", "repeat") and box.parameters else ""
    return f"{name}{times}{size}".strip()


def width(note: TunerNote) -> float:
    return max(CHARACTER * len(note.title), SMALL * len(_under(note))) + 22


def _under(note: TunerNote) -> str:
    return f"{note.form.replace('_', ' ')} · {note.rule}"


def tuner_text(note: TunerNote, x: float, y: float) -> str:
    return (
        f'<text class="name" x="{x:g}" y="{y + 16:g}" text-anchor="middle">{escape(note.title)}</text>'
        f'<text class="under" x="{x:g}" y="{y + 29:g}" text-anchor="middle">{escape(_under(note))}</text>'
    )


def behind(box: Box, left: float, right: float, height: float) -> Iterable[str]:
    """The edges of the copies behind a box."""
    for step in (6, 3) if box.times > 1 else ():
        size = f'width="{left + right:g}" height="{height:g}"'
        yield f'<rect class="copy" x="{-left + step:g}" y="{step}" {size} rx="6"/>'


def hint(box: Box) -> str:
    facts = [box.path or "(root)", box.word, box.shape, box.source if box.source != "?" else ""]
    if box.tuner is not None:
        facts = [f"{box.tuner.form} {box.tuner.title}", f"rule {box.tuner.rule}, {box.tuner.where}", box.tuner.sites[0]]
    return f"<title>{escape(chr(10).join(filter(None, facts)))}</title>"
