"""Globs over dotted paths."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.work import counted

from utcompile.rules import glob_match
from utcompile.rules.globs import glob_problem


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("blocks.0", "blocks.0", True),
        ("blocks.*", "blocks.0", True),
        ("blocks.*", "blocks.0.mlp", False),
        ("blocks.1*", "blocks.1", True),
        ("blocks.1*", "blocks.12", True),
        ("blocks.1*", "blocks.2", False),
        ("blocks.**", "blocks", True),
        ("blocks.**", "blocks.0.mlp.fc1", True),
        ("**", "", True),
        ("*", "", False),
        ("**.bias", "bias", True),
        ("**.bias", "a.b.bias", True),
        ("**.mlp.**", "a.mlp.b", True),
        ("a.**.b.**.c", "a.c", False),
        ("a.**.b.**.c", "a.x.b.y.z.c", True),
        ("a*b*c", "abc", True),
        ("a*bc*c", "abc", False),
        ("*Block", "SwinTransformerBlock", True),
        ("a.b", "a", False),
        ("a.c", "abc", False),
    ],
)
def test_glob_match(pattern: str, path: str, matches: bool) -> None:
    assert glob_match(pattern, path) is matches


@given(
    st.lists(st.sampled_from(["**", "*", "a", "a*", "*b", "a*b"]), min_size=1, max_size=5).map(".".join),
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=5).map(".".join),
)
def test_agrees_with_a_regular_expression(pattern: str, path: str) -> None:
    # each segment with the dot before it, so that `**` may stand for none
    parts = (r"(?:\.[^.]+)*" if p == "**" else r"\." + p.replace("*", "[^.]*") for p in pattern.split("."))
    assert glob_match(pattern, path) == bool(re.fullmatch("".join(parts), "." + path))


def test_no_pattern_takes_long() -> None:
    """Each part is compared with each segment at most once, and no part tries a place twice."""
    parts, segments = 40, 60
    with counted() as work:
        assert not glob_match(".".join(["**", "a*a*a*a*a*b"] * (parts // 2)), ".".join(["a" * 60] * segments))
    assert work.calls < 20 * parts * segments


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("", "it is empty"),
        ("a..b", "a part between two dots is empty"),
        (".a", "it begins or ends with a dot"),
        ("a.", "it begins or ends with a dot"),
        ("a**", "'**' matches whole parts between dots: write '**' alone, or one '*' within a part"),
        ("a.[0]", "only '*' and '**' are wildcards"),
        ("a b", "it has a space in it"),
        ("a.**.b-c*", None),
    ],
)
def test_glob_problem(pattern: str, why: str | None) -> None:
    assert glob_problem(pattern) == why
