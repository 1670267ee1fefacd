"""Places in a drawing that move when a box above them is closed: heights as expressions over the rows of a box.

`{2b+7}` is seven below row 2's bottom, `{0t}` row 0's top, `{3m-4}` four above row 3's middle; `{e+0}` is where a box's
rows begin and `{x+0}` its lower edge; `{2b+7~4m+0}` is the middle between two places. The page's script evaluates the
same expressions, so that a box closes and opens without a new layout.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_EXPRESSION = re.compile(r"\{([^}]*)\}")
_PLACE = re.compile(r"(\d*)([btmex])([+-][\d.]+)?")
CHARACTER, SMALL = 6.9, 5.9  # widths, on average, at 12 and 10 pixels
LEAF, SUM, TUNER = 26, 20, 36  # heights
HEAD = 30  # of a module's box, its title
FOOT = 14


@dataclass
class Row:
    """One child in the main column.

    Attributes:
        left, right: how far it reaches from the axis.
        gap: the space above it.
        height: as it is drawn at first.
    """

    left: float
    right: float
    height: float
    gap: float = 26


@dataclass(frozen=True)
class Stack:
    """Rows of one box, from top to bottom."""

    rows: tuple[Row, ...]

    @property
    def tops(self) -> list[float]:
        """The upper edge of each row."""
        found, y = [], float(HEAD)
        for row in self.rows:
            y += row.gap
            found.append(y)
            y += row.height
        return found

    @property
    def height(self) -> float:
        """Of the whole box."""
        last = self.tops[-1] + self.rows[-1].height if self.rows else HEAD
        return last + FOOT + 12

    def at(self, expression: str) -> float:
        """The number that an expression without its braces stands for.

        >>> stack = Stack((Row(10, 10, 20), Row(10, 10, 20)))
        >>> stack.at("0t"), stack.at("0b+7"), stack.at("0b~1t")
        (56.0, 83.0, 89.0)
        """
        places = [self._place(part) for part in expression.split("~")]
        return sum(places) / len(places)

    def placed(self, template: str) -> str:
        """A path or a number with its expressions evaluated."""
        return _EXPRESSION.sub(lambda found: f"{self.at(found[1]):g}", template)

    def _place(self, text: str) -> float:
        found = _PLACE.fullmatch(text)
        assert found is not None, text
        index, edge, offset = found[1], found[2], float(found[3] or 0)
        if edge == "e":
            return HEAD + offset
        if edge == "x":
            return self.height + offset
        row, top = self.rows[int(index)], self.tops[int(index)]
        return top + offset + {"t": 0, "m": row.height / 2, "b": row.height}[edge]


@dataclass
class Drawn:
    """A box that is drawn: around the axis x = 0, from y = 0 down."""

    left: float
    right: float
    height: float
    markup: str
    side: float | None = None  # x of the states of a side network, where they leave it
