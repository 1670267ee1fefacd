"""Every numbered case of every fold has its equation once, its condition, and a test that shows its counter-example."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest

from utcompile.folding import Case, registered_folds
from utcompile.folding.folds import BASE_FOLDS

TESTS = Path(__file__).resolve().parents[1]
FOLDS = [f for f in (*registered_folds(), *BASE_FOLDS) if type(f).__module__.startswith("utcompile.folding.folds.")]
CASES = [case for fold in FOLDS for case in fold.cases]


class _Collected:
    """What pytest collects of some files."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.names = {item.nodeid.removeprefix("tests/") for item in session.items}


@pytest.fixture(scope="module")
def collected() -> set[str]:
    found = _Collected()
    files = sorted({str(TESTS / case.test.partition("::")[0]) for case in CASES})
    assert pytest.main(["--collect-only", "-qq", "--no-header", "-p", "no:cacheprovider", *files], [found]) == 0
    return found.names


@pytest.mark.parametrize("fold", FOLDS, ids=[f.name for f in FOLDS])
def test_a_fold_has_cases(fold: object) -> None:
    cases: tuple[Case, ...] = fold.cases  # type: ignore[attr-defined]
    assert cases and all(c.condition and c.counter_example and c.test for c in cases)


def test_a_number_belongs_to_one_case() -> None:
    first = [c.number for c in CASES if c.equation]
    assert len(first) == len(set(first)) and {c.number for c in CASES} == set(first)
    assert [n for n, _ in groupby(c.number for c in CASES)] == first


def test_the_test_of_each_counter_example_exists(collected: set[str]) -> None:
    functions = {name.partition("[")[0] for name in collected}
    assert [c.test for c in CASES if c.test not in collected | functions] == []
