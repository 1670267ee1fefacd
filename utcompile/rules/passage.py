"""A text inside a rule file, with the place in the file of each of its characters."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

from utcompile.rules.syntax import Mark


@dataclass(frozen=True)
class Source:
    """The whole text of one file, `\\n` between its lines."""

    file: str
    text: str
    _starts: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        starts = [0]
        while (found := self.text.find("\n", starts[-1])) >= 0:
            starts.append(found + 1)
        object.__setattr__(self, "_starts", tuple(starts))

    def mark(self, index: int) -> Mark:
        """The line and column of the character at `index`.

        >>> str(Source("r.yaml", "a: 1\\nb: 2").mark(8))
        'r.yaml:2:4'
        """
        line = bisect.bisect_right(self._starts, index) - 1
        return Mark(self.file, line + 1, index - self._starts[line] + 1)


@dataclass(frozen=True)
class Passage:
    """A text, and for each of its characters an index into the source, or one mark for them all.

    Example:
        >>> passage = Passage.plain("y = norm(x)", Mark("r.yaml", 3, 5))
        >>> str(passage.mark(4))
        'r.yaml:3:9'
    """

    text: str
    source: Source | None
    places: Sequence[int]
    start: Mark

    @classmethod
    def plain(cls, text: str, start: Mark) -> Passage:
        """A text whose first character is at `start` and whose later lines begin in the same column."""
        # The file as far as this passage knows it: what comes before `start` is blank.
        indent = " " * (start.column - 1)
        blank = "\n" * (start.line - 1)
        source = Source(start.file, blank + indent + text.replace("\n", "\n" + indent))
        places, index = [], len(blank) + len(indent)
        for character in text:
            places.append(index)
            index += 1 + (len(indent) if character == "\n" else 0)
        return cls(text, source, places, start)

    @classmethod
    def at(cls, text: str, mark: Mark) -> Passage:
        """A text of which only the beginning is known: `mark` is the place of every character."""
        return cls(text, None, (), mark)

    @classmethod
    def aligned(cls, text: str, source: Source, first: int, last: int) -> Passage:
        """`text` as it is written between two indices of the source, in any of YAML's five scalar styles.

        Indentation, folded line breaks, doubled quotes and backslashes, which only the source has, are skipped. All of
        a text that cannot be followed (`"\\x41"`) has the place of its first character.
        """
        raw, index = source.text, first
        if raw[first : first + 1] in ("|", ">"):  # a block scalar begins in the line after its header
            index = raw.find("\n", first, last) + 1 or last
        places = []
        for position, character in enumerate(text):
            if character == " " and raw[index - 1 : index] == "\n":  # a text's own indentation ends its line's
                index += max(_spaces(raw, index) - _spaces(text, position), 0)
            while index < last and raw[index] != character and not _folds(character, raw[index]):
                if raw[index] not in " \t\n\"'\\":
                    return cls.at(text, source.mark(first))
                index += 1
            places.append(min(index, last))
            index += 1
        return cls(text, source, places, source.mark(places[0] if places else first))

    def mark(self, offset: int) -> Mark:
        """The place of the character at `offset`; past the end, the place where the text ends."""
        if self.source is None or not self.places:
            return self.start
        if offset < len(self.places):
            return self.source.mark(self.places[max(offset, 0)])
        return self.source.mark(self.places[-1] + 1)

    def replaced(self, start: int, stop: int, text: str) -> Passage:
        """The passage with `text` for `text[start:stop]`; the new characters have the place of the first old one."""
        whole = self.text[:start] + text + self.text[stop:]
        if self.source is None:
            return Passage.at(whole, self.start)
        middle = [self.places[start]] * len(text)
        return Passage(whole, self.source, [*self.places[:start], *middle, *self.places[stop:]], self.start)


def _spaces(text: str, index: int) -> int:
    """How many spaces begin at an index."""
    end = index
    while text[end : end + 1] == " ":
        end += 1
    return end - index


def short(text: object, limit: int = 40) -> str:
    """A piece of the user's text for a message, cut if it is long.

    >>> short("attention"), short("a" * 99, 6)
    ('attention', 'aaaaa…')
    """
    whole = str(text)
    return whole if len(whole) <= limit else whole[: limit - 1] + "…"


def _folds(character: str, raw: str) -> bool:
    return character == " " and raw == "\n"
