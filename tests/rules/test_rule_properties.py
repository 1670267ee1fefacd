"""Whatever the text, a mistake is a `UtcError`; whatever the pattern, its names come back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utcompile.errors import UtcError
from utcompile.rules import RuleSet
from utcompile.rules.names import CALLABLE
from utcompile.rules.passage import Passage
from utcompile.rules.pattern import parse_spelling
from utcompile.rules.syntax import Mark
from utcompile.rules.where import parse_comparison
from utcompile.rules.yaml12 import load

WHERE = Mark("f", 1, 1)
PARSERS: dict[str, Callable[[str], object]] = {
    "yaml": load,
    "file": lambda text: RuleSet.load(text + "\n"),
    "pattern": lambda text: parse_spelling(Passage.plain(text, WHERE), CALLABLE, {"attention"}),
    "where": lambda text: parse_comparison(Passage.plain(text, WHERE), {"x", "h"}),
}

PIECES = [
    *("version: 1", "name: a", "rules:", "vars: ", "match: ", "insert: ", "weight: ", "tuner: ", "kind: ", "where: "),
    *(
        "- ",
        "  ",
        "\n",
        ": ",
        "{",
        "}",
        "[",
        "]",
        ",",
        ", ",
        "|",
        '"',
        "'",
        "&a ",
        "*a ",
        "#",
        "!!str ",
        "<<",
        "---",
        "%",
    ),
    *("\t", "\r", "\x00", "\x85", "\ud800", "é", '"\\U99999999"', "@", "`", "$n", "010", "1e-4", "-", "->"),
    *("x", "y", "h", "=", "==", "(", ")", " in ", "linear", "norm", "skip", "path", "attention", "through=", "max="),
    *(".rank", ".op", ".", "**", "lora", "lambda", "for", ":=", "\\"),
]
TEXTS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=25).map("".join))

SKELETON = "version: 1\nname: a\nrules:\n  - name: r\n    match: {}\n    where: [{}]\n    insert: {}\n    {}\n"


@pytest.mark.parametrize("name", PARSERS)
@given(text=TEXTS)
@settings(max_examples=300)
def test_no_text_raises_anything_but_a_utc_error(name: str, text: str) -> None:
    try:
        PARSERS[name](text)
    except UtcError as error:
        assert error.where and len(str(error)) < 1000


@given(st.tuples(TEXTS, TEXTS, TEXTS, TEXTS))
@settings(max_examples=300)
def test_no_value_raises_anything_but_a_utc_error(texts: tuple[str, str, str, str]) -> None:
    try:
        RuleSet.load(SKELETON.format(*texts))
    except UtcError as error:
        assert error.where and len(str(error)) < 1000


@st.composite
def patterns(draw: st.DrawFn) -> tuple[str, set[str], list[tuple[str, ...]]]:
    """A valid pattern: its text, its names, and the targets of its lines. Each line reads the line before."""
    names, targets, lines = {"x"}, [], []
    last = "x"
    for index in range(draw(st.integers(1, 8))):
        bound = tuple(f"v{index}_{part}" for part in range(draw(st.integers(1, 3))))
        heads = draw(st.lists(st.sampled_from(["linear", "conv2d(groups=1)", "split"]), min_size=1, max_size=3))
        operand = draw(st.sampled_from([last, f"norm({last})", f"path({last}, through=conv | norm, max=3)"]))
        other = draw(st.sampled_from(["", ", " + draw(st.sampled_from(sorted(names))), ", other"]))
        names |= {"other"} if other == ", other" else set()
        lines.append(f"{', '.join(bound)} = ({' | '.join(heads)})({operand}{other})")
        targets.append(bound)
        names |= set(bound)
        last = draw(st.sampled_from(bound))
    return "\n".join(lines), names, targets


@given(patterns())
def test_a_valid_pattern_keeps_its_names(pattern: tuple[str, set[str], list[tuple[str, ...]]]) -> None:
    text, names, targets = pattern
    spelling = parse_spelling(Passage.plain(text, WHERE), CALLABLE)
    assert spelling.names == names
    assert [step.targets for step in spelling.steps] == targets
    assert "\n".join(step.text for step in spelling.steps) == text
    assert [step.mark.line for step in spelling.steps] == list(range(1, len(targets) + 1))
