"""Each character of a text knows its place in the file, in every scalar style of YAML."""

from __future__ import annotations

import pytest

from utcompile.rules.passage import Passage, short
from utcompile.rules.syntax import Mark
from utcompile.rules.yaml12 import load

STYLES = {
    "literal": ("k: |\n    one\n      two @\n", "3:11"),
    "literal with blank lines": ("k: |\n\n  one\n\n  two @\n", "5:7"),
    "literal with an indicator": ("k: |2-\n    one\n  two @\n", "3:7"),
    "literal with a line that is indented more": ("k: |\n  one\n     @\n", "3:6"),
    "literal after a comment": ("k: |  # why\n  one @\n", "2:7"),
    "folded": ("k: >\n  one\n  two @\n", "3:7"),
    "plain": ("k: one @\n", "1:8"),
    "plain on two lines": ("k: one\n  two @\n", "2:7"),
    "single quotes": ("k: 'it''s @'\n", "1:11"),
    "double quotes": ('k: "a \\" @"\n', "1:10"),
    "double quotes with an escape that hides": ('k: "\\x41 @"\n', "1:4"),
    "flow list": ("k: one\nl: [a, b @]\n", "2:10"),
}


@pytest.mark.parametrize("name", STYLES)
def test_place_of_a_character(name: str) -> None:
    text, place = STYLES[name]
    root = load(text, "f")
    node = root.at("l", 1) if "l" in root.entries() else root.at("k")
    assert str(node.passage.mark(node.passage.text.index("@"))) == f"f:{place}"


def test_every_character_of_a_block_is_where_it_is_in_the_file() -> None:
    text = "rules:\n  - match: |\n      n = norm(x)\n        # indented more\n\n      y = add(n, x)\n    after: 1\n"
    lines = text.split("\n")
    passage = load(text).at("rules", 0, "match").passage
    for offset, character in enumerate(passage.text):
        mark = passage.mark(offset)
        if not character.isspace():
            assert lines[mark.line - 1][mark.column - 1] == character


def test_past_the_end_is_where_the_text_ends() -> None:
    assert str(load("k: abc").at("k").passage.mark(99)) == "<rules>:1:7"
    assert str(Passage.plain("", Mark("f", 2, 3)).mark(5)) == "f:2:3"


def test_a_replaced_part_stands_where_it_began() -> None:
    passage = Passage.plain("a $b c", Mark("f", 1, 1)).replaced(2, 4, "1234")
    assert passage.text == "a 1234 c"
    assert [str(passage.mark(i)) for i in (0, 2, 5, 7)] == ["f:1:1", "f:1:3", "f:1:3", "f:1:6"]


def test_short() -> None:
    assert short("x" * 50) == "x" * 39 + "…"


def test_indentation_of_a_text_is_the_end_of_its_line_s() -> None:
    passage = load("k: |\n    one\n      two\n").at("k").passage
    assert [str(passage.mark(offset)) for offset in (4, 5, 6)] == ["<rules>:3:5", "<rules>:3:6", "<rules>:3:7"]
