"""A rule's test names what is Missing and what is Noisy, by path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import utcompile as utc
from utcompile.matching.verdict import judge
from utcompile.rules import glob_match

BLOCKS = [f"blocks.{i}" for i in range(4)]
MODULES = ["", *BLOCKS, *(f"{b}.mlp" for b in BLOCKS), "head"]


@pytest.mark.parametrize(
    ("expected", "paths", "missing", "noisy"),
    [
        (4, BLOCKS, [], []),
        ({"blocks.*": 4}, BLOCKS, [], []),
        ({"blocks.*": None}, BLOCKS[:2], [], []),
        ({"blocks.0": None, "blocks.1": None}, ["blocks.1", "head"], ["blocks.0"], ["head"]),
        ({"blocks.*": 4}, BLOCKS[1:], ["blocks.0"], []),
        ({"blocks.*": 2}, BLOCKS[:1], ["blocks.*: 1 of 2, among blocks.* (3)"], []),
        ({"blocks.*": 9}, BLOCKS, ["blocks.*: 4 of 9"], []),
        ({"blocks.*": 2}, BLOCKS, [], ["blocks.*: 4 sites, not 2: blocks.* (4)"]),
        ({"blocks.*": 0}, BLOCKS[:1], [], ["blocks.0"]),
        ({"head": 2}, ["head"], ["head: 1 site more"], []),
        ({"head": 1}, ["head", "head"], [], ["head: 2 sites, not 1"]),
        ({"head": 1}, [], ["head"], []),
        ({"stem.*": None}, [], ["stem.*"], []),
        ({"(root)": None}, [""], [], []),
        ({}, [], [], []),
        ({}, [""], [], ["(root)"]),
    ],
)
def test_missing_and_noisy(expected: object, paths: list[str], missing: list[str], noisy: list[str]) -> None:
    verdict = judge("r", expected, paths, MODULES)  # type: ignore[arg-type]
    assert (list(verdict.missing), list(verdict.noisy)) == (missing, noisy)
    assert verdict.passed == (not missing and not noisy)


def test_a_number_names_what_was_found() -> None:
    verdict = judge("r", 3, BLOCKS, MODULES)
    assert not verdict.passed and str(verdict) == "r: expected 3, found 4"
    assert verdict.details() == ["found at blocks.* (4)"]


PATHS = st.lists(st.sampled_from(MODULES), max_size=8)
GLOBS = st.sampled_from(["blocks.*", "blocks.**", "blocks.0", "**.mlp", "head", "*"])


@given(PATHS, st.dictionaries(GLOBS, st.one_of(st.none(), st.integers(0, 5)), max_size=3))
def test_a_verdict_passes_where_every_number_is_right_and_nothing_is_left_over(
    paths: list[str], expected: dict[str, int | None]
) -> None:
    named = [p or "(root)" for p in paths]
    counts = {g: sum(glob_match(g, p) for p in named) for g in expected}
    right = all(counts[g] > 0 if n is None else counts[g] == n for g, n in expected.items())
    covered = all(any(glob_match(g, p) for g in expected) for p in named)
    assert judge("r", expected, paths, MODULES).passed == (right and covered)


@given(PATHS)
def test_what_was_found_is_what_a_list_of_it_expects(paths: list[str]) -> None:
    stated = {p or "(root)": None for p in paths}
    assert judge("r", stated, paths, MODULES).passed
    for path in stated:
        less = {k: v for k, v in stated.items() if k != path}
        assert judge("r", less, paths, MODULES).noisy == (path,)
        assert judge("r", stated, [p for p in paths if (p or "(root)") != path], MODULES).missing == (path,)


# --- how a rule file states it ---------------------------------------------------------------------------------------------


def loaded(sites: str) -> utc.RuleSet:
    return utc.RuleSet.load(
        "version: 1\nname: t\nrules:\n  - {name: r, match: {op: linear}, insert: {weight: h, tuner: {kind: lora}}}\n"
        f"tests:\n  - {{model: 'timm:test_vit', sites: {{r: {sites}}}}}\n"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", 3),
        ("[blocks.0, head]", {"blocks.0": None, "head": None}),
        ('{"blocks.*": 12, head: 1}', {"blocks.*": 12, "head": 1}),
        ("[]", {}),
    ],
)
def test_a_test_states_a_number_paths_or_numbers_by_glob(text: str, expected: object) -> None:
    assert loaded(text).tests[0].sites["r"] == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("many", "<rules>:6:41: 'r' must be a number, a list of paths or a mapping\n  why: it is the text 'many'"),
        ("true", "'r' must be a number, a list of paths or a mapping\n  why: it is true"),
        ("-1", "'r' must be at least 0"),
        ("[blocks..0]", "'blocks..0' is not a glob: a part between two dots is empty"),
        ("[1]", "an item of 'r' must be a text"),
        ('{"blocks.*": -1}', "'blocks.*' must be at least 0"),
        ('{"blocks.?": 1}', "'blocks.?' is not a glob"),
    ],
)
def test_what_is_no_such_statement(text: str, said: str) -> None:
    with pytest.raises(utc.UtcError) as caught:
        loaded(text)
    assert said in str(caught.value), str(caught.value)
    assert str(caught.value).startswith("<rules>:6:")
