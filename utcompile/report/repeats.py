"""Boxes that are drawn as one: copies of a block in a row, a layer with the norm after it, indices and masks."""

from __future__ import annotations

from collections.abc import Sequence

from utcompile.report.boxes import ENTRY, EXIT, Box, Line, TunerNote

_LONGEST = 4  # children of a unit that repeats: a block, a tuner parallel to it, a sum, a stage of a side network


def grouped(box: Box, *, is_root: bool = True) -> Box:
    """The same boxes, with copies in a row as one; the boxes are changed."""
    box.children = [grouped(child, is_root=False) for child in box.children]
    _gather(box)
    marks, at = [child.signature for child in box.children], 0
    while at < len(box.children):
        unit, times = _repeat(box, marks, at)
        if times > 1:
            _join(box, at, unit, times)
            marks[at : at + unit * times] = [box.children[at].signature]
        at += 1
    return box if is_root else _without_shell(box)


def _without_shell(box: Box) -> Box:
    """A module with one module and nothing else in it is drawn as the inner one."""
    inner = box.children[0] if len(box.children) == 1 else None
    if inner is None or box.kind != "module" or inner.kind not in ("module", "repeat"):
        return box
    inner.name = f"{box.name}.{inner.name}"
    if inner.times == 1:
        inner.parameters, inner.trained = box.parameters, box.trained
    return inner


def _gather(box: Box) -> None:
    """Groups of operations that read as one: a layer with the norm and the activation after it; indices and masks."""
    at = 0
    while at < len(box.children):
        end = at + 1
        while end < len(box.children) and _is_one(box, at, end):
            end += 1
        if end - at > (2 if box.children[at].part == "index" else 1):
            _replace(box, at, end, _group(box, at, end))
        at += 1


def _is_one(box: Box, at: int, end: int) -> bool:
    """Whether a child belongs to the group that begins at another."""
    first, child = box.children[at], box.children[end]
    if any(one.kind != "operation" or one.has_tuner for one in (first, child)):
        return False
    if first.part == "index" or child.part == "index":
        return first.part == child.part
    into = [line.source for line in box.lines if line.target == end]
    out = [line.target for line in box.lines if line.source == end - 1]
    return bool(first.name) and child.part == "follows" and into == [end - 1] and out == [end]


def _group(box: Box, at: int, end: int) -> Box:
    members = box.children[at:end]
    first, last = members[0], members[-1]
    if first.part == "index":
        name, word = "", f"indices and masks, {len(members)} operations"
    else:
        name = " ".join(child.name for child in members if child.name)
        word = " ".join(child.word for child in members)
    found = Box("group", name, word, list(first.paths), last.shape, last.source, children=members)
    found.parameters, found.flops = sum(c.parameters for c in members), sum(c.flops for c in members)
    found.lines = _of_unit(box.lines, at, end - at)
    return found


def _repeat(box: Box, marks: Sequence[object], at: int) -> tuple[int, int]:
    """How many children repeat from a place on, and how often; the shortest unit that repeats.

    Args:
        marks: the signatures of the children.
    """
    for unit in range(1, min(_LONGEST, (len(marks) - at) // 2) + 1):
        first = marks[at : at + unit]
        if not any(child.kind == "module" for child in box.children[at : at + unit]):
            continue
        times = 1
        while marks[at + times * unit : at + (times + 1) * unit] == first and _alike(box, at, unit, times):
            times += 1
        if times > 1:
            return unit, times
    return 1, 1


def _alike(box: Box, at: int, unit: int, times: int) -> bool:
    """Whether the lines inside the n-th unit are those inside the first."""
    return _inside(box, at, unit) == _inside(box, at + times * unit, unit)


def _inside(box: Box, at: int, unit: int) -> set[tuple[int, int, str, bool]]:
    here = range(at, at + unit)
    inside = (line for line in box.lines if line.source in here and line.target in here)
    return {(line.source - at, line.target - at, line.shape, line.is_side) for line in inside}


def _join(box: Box, at: int, unit: int, times: int) -> None:
    """Make one child of the units, with the lines of the first."""
    every = box.children[at : at + unit * times]
    first, end = every[:unit], at + unit * times
    for index, other in enumerate(every[unit:]):
        _merge(first[index % unit], other)
    if unit == 1:
        joined = first[0]
        joined.times = times
    else:
        joined = Box("repeat", "", "", [p for child in first[:1] for p in child.paths], times=times, children=first)
        joined.parameters = sum(child.parameters for child in first)
        joined.trained = sum(child.trained for child in first)
        joined.flops = sum(child.flops for child in first)
        joined.lines = list(dict.fromkeys(_of_unit(box.lines, at, unit)))
        joined.shape = next((line.shape for line in joined.lines if line.target == EXIT), "")

    _replace(box, at, end, joined)


def _replace(box: Box, at: int, end: int, joined: Box) -> None:
    """Put one child in the place of several; lines between these go."""

    def place(index: int) -> int:
        return index if index < at else at if index < end else index - (end - at) + 1

    kept: dict[tuple[int, int, bool], Line] = {}
    for line in box.lines:
        if at <= line.source < end and at <= line.target < end:
            continue
        moved = Line(place(line.source), place(line.target), line.shape, line.is_side)
        kept.setdefault((moved.source, moved.target, moved.is_side), moved)
    box.children[at:end] = [joined]
    box.lines = list(kept.values())


def _of_unit(lines: list[Line], at: int, unit: int) -> list[Line]:
    """The lines of the first unit: what comes from before it enters, what goes beyond it leaves."""
    here = range(at, at + unit)
    found = []
    for line in lines:
        source = line.source - at if line.source in here else ENTRY
        target = line.target - at if line.target in here else EXIT
        if source != ENTRY or target != EXIT:
            found.append(Line(source, target, line.shape, line.is_side))
    shown: dict[tuple[int, int, bool], Line] = {}
    for line in found:
        shown.setdefault((line.source, line.target, line.is_side), line)
    return list(shown.values())


def _merge(box: Box, copy: Box) -> None:
    box.paths += copy.paths
    for mine, theirs in zip(_notes(box), _notes(copy), strict=True):
        mine.sites.extend(s for s in theirs.sites if s not in mine.sites)
    for child, other in zip(box.children, copy.children, strict=True):
        _merge(child, other)


def _notes(box: Box) -> list[TunerNote]:
    return [*([box.tuner] if box.tuner else []), *box.attached]
