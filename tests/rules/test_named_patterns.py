"""The built-in named patterns, and the words of the language."""

from __future__ import annotations

import pytest

from utcompile.rules import library_patterns
from utcompile.rules.library import calls_of
from utcompile.rules.names import CALLABLE, CLASSES, OPERATIONS, OPERATIONS_BY_GROUP, RESERVED, STRUCTURAL


@pytest.mark.parametrize("name", sorted(library_patterns()))
def test_every_pattern_can_be_called(name: str) -> None:
    pattern = library_patterns()[name]
    assert pattern.name == name and {"x", "y"} <= pattern.names
    for spelling in pattern.spellings:
        assert "y" in spelling.steps[-1].targets


def test_the_patterns_that_the_language_promises() -> None:
    promised = (
        "attention ffn gated_ffn token_mixer residual_block inverted_residual bottleneck_block squeeze_excite stem "
        "downsample head block"
    )
    assert set(promised.split()) <= library_patterns().keys()
    offered = {"attention": "xnqkvocy", "ffn": "xnhacy", "gated_ffn": "xnhagmcy", "token_mixer": "xncy", "stem": "xhy"}
    for name, letters in offered.items():
        assert set(letters) <= library_patterns()[name].names, name


def test_patterns_call_one_another_in_no_circle() -> None:
    patterns = library_patterns()
    assert set(calls_of(patterns["block"], patterns)) >= {"attention", "ffn"}


def test_every_word_has_one_line_and_one_group() -> None:
    words = [word for group in OPERATIONS_BY_GROUP.values() for word in group]
    assert len(words) == len(set(words)) == len(OPERATIONS)
    assert {*OPERATIONS, *CLASSES, *STRUCTURAL} == RESERVED
    assert RESERVED - {"skip", "path"} == CALLABLE
    for line in [*OPERATIONS.values(), *CLASSES.values(), *STRUCTURAL.values()]:
        assert line and "\n" not in line


def test_no_pattern_has_the_name_of_an_operation() -> None:
    assert RESERVED.isdisjoint(library_patterns())
