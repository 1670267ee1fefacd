"""A module's box: children in one column, straight lines between them, other lines in lanes, tuners to the right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from html import escape

from utcompile.report.boxes import ENTRY, EXIT, Box, Line
from utcompile.report.geometry import CHARACTER, HEAD, Drawn, Row, Stack
from utcompile.report.labels import behind, hint, short, title, word

_LANE = 14


class Container:
    """A module's box: its children in one column, with the lines between them."""

    def __init__(self, box: Box, draw: Callable[[Box], Drawn], mark: str) -> None:
        self.box, self.mark = box, mark
        self.beside = {i for i, child in enumerate(box.children) if self._is_beside(i, child)}
        self.drawn = [draw(child) for child in box.children]
        self.rows: list[Row] = []
        self.at: dict[int, int] = {}  # place of a child to its row
        self.slots: set[int] = set()  # rows that only something in a right column uses
        for index, drawn in enumerate(self.drawn):
            if index not in self.beside:
                self.at[index] = len(self.rows)
                self.rows.append(Row(drawn.left, drawn.right, drawn.height))
            elif not self._has_room(index):
                self.at[index] = len(self.rows)
                self.slots.add(len(self.rows))
                self.rows.append(Row(0, 0, drawn.height, 18))
        self.inner_left = max([60.0, *(row.left for row in self.rows)])
        self.inner_right = max([60.0, *(row.right for row in self.rows)])
        self.parts: list[tuple[str, str]] = []  # template of a position, and markup with {} for it
        self.side: float | None = None

    def draw(self) -> Drawn:
        columns = self._columns()
        for index, x in columns.items():
            self._beside(index, x)
        lanes = self._lanes()
        states = self._states(columns)
        heads = CHARACTER * len(self._title()) + 60
        left = self.inner_left + _LANE * lanes + 16
        right = max(
            [
                self.inner_right + 16,
                *(x + self.drawn[i].right + 14 for i, x in columns.items()),
                *(x + 14 for x in states),
            ]
        )
        right = max(right, heads - left)
        return self._assembled(left, right)

    def _is_beside(self, index: int, child: Box) -> bool:
        """Whether a tuner is drawn in a right column: it joins a sum, or is a stage of a side network."""
        if child.kind != "tuner" or child.tuner is None:
            return False
        if child.tuner.joins == "sum":
            return True
        return child.tuner.joins == "stage" and not any(
            line.source == index and not line.is_side for line in self.box.lines
        )

    def _span(self, index: int) -> tuple[int, int | None]:
        """The last row that a tuner reads, and the first that reads it; -1 for the box's entry, None for none."""
        sources = [self.at.get(line.source, -1) for line in self.box.lines if line.target == index]
        targets = [line.target for line in self.box.lines if line.source == index and line.target >= 0]
        rows = [self.at[t] for t in targets if t in self.at]
        return max(sources, default=-1), min(rows, default=None)

    def _has_room(self, index: int) -> bool:
        """Whether a row is between what a tuner reads and the sum that comes next."""
        targets = [line.target for line in self.box.lines if line.source == index]
        last = max((self.at.get(line.source, -1) for line in self.box.lines if line.target == index), default=-1)
        child = self.box.children[index]
        joins = child.tuner is not None and child.tuner.joins == "sum"
        return joins and bool(targets) and min(targets) == index + 1 and last < len(self.rows) - 1

    def _columns(self) -> dict[int, float]:
        """The x of each tuner in a right column; those whose rows overlap get different ones."""
        taken: list[list[tuple[int, int]]] = []
        chosen: dict[int, int] = {}
        for index in sorted(self.beside):
            start, end = self._span(index)
            span = (start, end if end is not None else self.at.get(index, start))
            column = next(
                (c for c, spans in enumerate(taken) if all(span[0] >= b or span[1] <= a for a, b in spans)), len(taken)
            )
            if column == len(taken):
                taken.append([])
            taken[column].append(span)
            chosen[index] = column
        x, places = self.inner_right + 30, []
        for column in range(len(taken)):
            half = max(self.drawn[i].right for i, c in chosen.items() if c == column)
            places.append(x + half)
            x += 2 * half + 16
        return {index: places[column] for index, column in chosen.items()}

    def _beside(self, index: int, x: float) -> None:
        start, end = self._span(index)
        child = self.drawn[index]
        middle = f"{{{self.at[index]}t}}" if index in self.at else f"{{{_below(start)}~{end}m-{child.height:g}}}"
        self._add(middle, f'<g transform="translate({x:g},{{}})" {{data}}>{child.markup}</g>')
        top = middle[1:-1]
        down = _shifted(top, child.height)
        for line in self._of(index):
            tip = ' marker-end="url(#tip-t)"'
            if line.target == index:
                if line.is_side and line.source == ENTRY:
                    self.side = x
                    self._path(f"M{x:g},{{e-30}}V{{{top}}}", "tuned state", tip)
                elif line.source in self.beside:
                    self._path(
                        f"M{x:g},{{{_shifted(self._top(line.source), child.height)}}}V{{{top}}}", "tuned state", tip
                    )
                elif index in self.at:  # a stage: from the left
                    self._path(f"M0,{{{self._below(line.source)}}}H{x:g}V{{{top}}}", "tuned", tip)
                else:
                    self._path(f"M0,{{{self._below(line.source)}}}H{x:g}V{{{top}}}", "tuned", tip)
                if not line.is_side:
                    self._dot(self._below(line.source))
            elif line.target == EXIT:
                self.side = x
                self._path(f"M{x:g},{{{down}}}V{{x+0}}", "tuned state", "")
            elif line.target not in self.beside:
                row = self.at[line.target]
                self._path(f"M{x:g},{{{down}}}V{{{row}m}}H{self.drawn[line.target].right + 1:g}", "tuned", tip)

    def _top(self, index: int) -> str:
        return f"{self.at[index]}t" if index in self.at else "e"

    def _states(self, columns: dict[int, float]) -> list[float]:
        """Lines of a side network from box to box; returns their x."""
        found = []
        for line in self.box.lines:
            if not line.is_side or line.source in self.beside or line.target in self.beside:
                continue
            source = self.drawn[line.source].side if line.source >= 0 else None
            target = self.drawn[line.target].side if line.target >= 0 else None
            x = source if source is not None else target if target is not None else self.inner_right + 20
            found.append(x)
            if line.source == ENTRY or line.target == EXIT:
                self.side = x
            start = (
                "e-30"
                if line.source == ENTRY
                else f"{self.at[line.source]}b"
                if source is not None
                else self._below(line.source)
            )
            begin = f"M{x:g},{{{start}}}" if source is not None or line.source == ENTRY else f"M0,{{{start}}}H{x:g}"
            if line.target == EXIT:
                self._path(f"{begin}V{{x+0}}", "tuned state", "")
            elif target is not None:
                across = f"H{target:g}" if target != x else ""
                self._path(
                    f"{begin}V{{{self.at[line.target]}t-12}}{across}V{{{self.at[line.target]}t}}",
                    "tuned state",
                    ' marker-end="url(#tip-t)"',
                )
            else:
                row = self.at[line.target]
                self._path(
                    f"{begin}V{{{row}m}}H{self.drawn[line.target].right + 1:g}",
                    "tuned state",
                    ' marker-end="url(#tip-t)"',
                )
        return found

    def _lanes(self) -> int:
        """Draws the straight lines, and the others in lanes on the left; returns how many lanes there are."""
        trunks: dict[int, list[Line]] = defaultdict(list)
        labels: dict[int, set[str]] = defaultdict(set)
        for line in self.box.lines:
            if line.is_side or line.source in self.beside or line.target in self.beside:
                continue
            start, end = self._row(line.source, -1), self._row(line.target, len(self.rows))
            between = [r for r in range(start + 1, end) if r not in self.slots]
            if between:
                trunks[line.source].append(line)
                continue
            above = "{e+0}" if start < 0 else f"{{{start}b}}"
            below = "{x+0}" if line.target == EXIT else f"{{{end}t}}"
            self._path(f"M0,{above}V{below}", "", "" if line.target == EXIT else ' marker-end="url(#tip)"')
            labels[line.source].add(line.shape)
            if line.source != ENTRY and line.target != EXIT:  # which the box around labels
                self._label(f"{{{end}t-9}}", 7, line.shape)
        taken: list[list[tuple[int, int]]] = []
        ends = {
            source: (self._row(source, -1), max(self._row(line.target, len(self.rows)) for line in lines))
            for source, lines in trunks.items()
        }
        entering: dict[int, int] = defaultdict(int)
        for source in sorted(trunks, key=lambda s: (ends[s][1] - ends[s][0], ends[s][0])):
            a, b = ends[source]
            lane = next((i for i, spans in enumerate(taken) if all(b <= c or a >= d for c, d in spans)), len(taken))
            if lane == len(taken):
                taken.append([])
            taken[lane].append((a, b))
            self._trunk(trunks[source], -(self.inner_left + _LANE * (lane + 0.7)), entering, labels[source])
        return len(taken)

    def _trunk(self, lines: Sequence[Line], x: float, entering: dict[int, int], shown: set[str]) -> None:
        source = lines[0].source
        start = self._below(source)
        if source == ENTRY:
            self._path("M0,{e+0}V{e+7}", "", "")
        elif not shown:
            self._path(f"M0,{{{self.at[source]}b}}V{{{start}}}", "", "")
        self._dot(start)
        if lines[0].shape not in shown and source != ENTRY:
            self._add(
                f"{{{start}}}",
                f'<text class="shape" x="-9" dy="11" text-anchor="end" y="{{}}" {{data}}>{escape(lines[0].shape)}'
                "</text>",
            )
        for line in lines:
            if line.target == EXIT:
                self._path(f"M0,{{{start}}}H{x:g}V{{x-8}}H0V{{x+0}}", "", "")
                continue
            row = self.at[line.target]
            shift = 5 * entering[row]
            entering[row] += 1
            left = self.drawn[line.target].left + (1 if self.box.children[line.target].kind != "sum" else 0)
            edge = f"{row}m+{shift}" if self._is_low(line.target) else f"{row}t+{16 + shift}"
            self._path(f"M0,{{{start}}}H{x:g}V{{{edge}}}H{-left:g}", "", ' marker-end="url(#tip)"')

    def _is_low(self, index: int) -> bool:
        return self.box.children[index].kind in ("sum", "operation", "tuner")

    def _row(self, index: int, outside: int) -> int:
        return self.at[index] if index >= 0 else outside

    def _below(self, index: int) -> str:
        return _below(self._row(index, -1))

    def _of(self, index: int) -> list[Line]:
        return [line for line in self.box.lines if index in (line.source, line.target)]

    def _path(self, template: str, classes: str, tip: str) -> None:
        name = f"wire {classes}".strip()
        self._add(template, f'<path class="{name}" d="{{}}"{tip} {{data}}/>')

    def _label(self, y: str, x: float, text: str) -> None:
        self._add(y, f'<text class="shape" x="{x:g}" y="{{}}" {{data}}>{escape(text)}</text>')

    def _dot(self, y: str) -> None:
        self._add(f"{{{y}}}", '<circle class="dot" r="2.2" cy="{}" {data}/>')

    def _add(self, template: str, markup: str) -> None:
        self.parts.append((template, markup))

    def _title(self) -> str:
        return f"{short(title(self.box))}  {word(self.box)}"

    def _assembled(self, left: float, right: float) -> Drawn:
        stack = Stack(tuple(self.rows))
        live = bool(self.mark)
        is_open = not live or self.box.has_tuner
        height = stack.height if is_open else HEAD
        inside = []
        for template, markup in dict.fromkeys(self.parts):
            data = f'data-at="{template}"' if live else ""
            inside.append(markup.replace("{}", stack.placed(template)).replace("{data}", data))
        for index, row in self.at.items():
            if index in self.beside:
                continue
            data = f'data-row="{row}" data-at="{{{row}t}}"' if live else ""
            inside.append(f'<g transform="translate(0,{stack.tops[row]:g})" {data}>{self.drawn[index].markup}</g>')
        box = self.box
        marks = f'{self.mark} data-rows="{" ".join(f"{r.gap:g},{r.height:g}" for r in self.rows)}"' if live else ""
        state = "" if is_open else " closed"
        sign = f'<text class="sign" x="{-left + 9:g}" y="19">▾</text>' if live else ""
        trained = " trained" if box.trained and not box.children else ""
        kind, name = "repeat" if box.kind == "repeat" else "module", escape(short(title(box)))
        text = (
            f'<g class="container {kind}{state}{trained}" {marks}>{hint(box)}'
            + "".join(behind(box, left, right, height))
            + f'<rect class="frame" x="{-left:g}" width="{left + right:g}" height="{height:g}" rx="8"/>'
            + f'<g class="head"><rect class="bar" x="{-left:g}" width="{left + right:g}" height="{HEAD}" rx="8"/>{sign}'
            + f'<text x="{-left + (22 if live else 10):g}" y="19"><tspan class="name">{name}</tspan>'
            + f'<tspan class="word" dx="8">{escape(word(box))}</tspan></text></g>'
            + f'<g class="inside">{"".join(inside)}</g></g>'
        )
        return Drawn(left, right, height, text, self.side)


def _below(row: int) -> str:
    return "e+7" if row < 0 else f"{row}b+7"


def _shifted(expression: str, by: float) -> str:
    """An expression moved down: every part of a mean is moved."""
    moved = []
    for part in expression.split("~"):
        cut = max(part.rfind("+"), part.rfind("-"))
        base, offset = (part, 0.0) if cut < 0 else (part[:cut], float(part[cut:]))
        moved.append(f"{base}{offset + by:+g}")
    return "~".join(moved)
