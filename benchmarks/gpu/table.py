"""The rows as Markdown, ready for docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.gpu.row import Row

_STEPS = "| model, precision | trained | parameters | step | quartiles | of the first | peak | of the first | kept |"


def page(rows: Sequence[Row]) -> str:
    """The machine, how many rows of each status, the checks, and the training steps."""
    steps = [r for r in rows if "steps" in r.figures]
    machine = next((_figures(r.figures) for r in rows if r.key == "machine: versions"), "an unknown machine")
    lines = [f"{machine}.", "", f"{counted(rows)}.", "", *_checks(r for r in rows if r not in steps)]
    return "\n".join([*lines, *(["", *_steps(steps)] if steps else [])]) + "\n"


def counted(rows: Iterable[Row]) -> str:
    """How many rows of each status."""
    every = [r.status for r in rows]
    return ", ".join(f"{every.count(s)} {s}" for s in dict.fromkeys(sorted(every)))


def line(row: Row) -> str:
    """A row in one line, for the terminal."""
    return f"{row.seconds:6.1f} s  {row.status:8s} {row.key}  {'; '.join(filter(None, _told(row)))}"


def _told(row: Row) -> tuple[str, ...]:
    return row.why, *row.problems, _figures(row.figures)


def _checks(rows: Iterable[Row]) -> Iterator[str]:
    yield "| check | | seconds | found |\n|---|---|--:|---|"
    for row in rows:
        status = f"known: {row.why}" if row.status == "known" else f"not run: {row.why}" if row.why else row.status
        found = "; ".join(filter(None, (*row.problems, _figures(row.figures))))
        yield f"| {_cell(row.key)} | {_cell(status)} | {row.seconds} | {_cell(found)} |"


def _steps(rows: Iterable[Row]) -> Iterator[str]:
    yield f"{_STEPS}\n|---|---|--:|--:|--:|--:|--:|--:|--:|"
    for row in rows:
        name = row.key.partition(": ")[2]
        for step in row.figures["steps"]:
            yield _step(name, step)


def _step(name: str, step: Mapping[str, Any]) -> str:
    peak = f"{step['peak_mb']:,.0f} MB | {step['peak_ratio']:.3f}" if step["peak_mb"] else "|"
    return (
        f"| {_cell(name)} | {_cell(step['what'])} | {step['parameters']:,} | {step['ms']:.2f} ms "
        f"| {step['lower']:.2f} to {step['upper']:.2f} | {step['ratio']:.3f} | {peak} | {step['kept_mb']:,.0f} MB |"
    )


def _figures(figures: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {_figure(v)}" for k, v in figures.items() if k != "steps")


def _figure(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
