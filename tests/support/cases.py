"""Which cases of a product of choices run in every run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations, product
from typing import Any

import pytest


def in_pairs(*choices: Sequence[Any]) -> list[Any]:
    """The product of choices as parameters: some cases, in which each pair of values occurs, and the others marked full.

    Most faults that depend on several choices depend on two of them.

    Example:
        >>> [tuple(case.values) for case in in_pairs("ab", "xy", "12") if not case.marks]
        [('a', 'x', '1'), ('a', 'y', '2'), ('b', 'x', '2'), ('b', 'y', '1')]
    """
    left = set(_pairs(list(product(*(range(len(c)) for c in choices)))))
    every = list(product(*(range(len(c)) for c in choices)))
    chosen = set()
    while left:
        best = max(every, key=lambda case: len(left.intersection(_pairs([case]))))
        chosen.add(best)
        left.difference_update(_pairs([best]))
    return [
        pytest.param(
            *(c[i] for c, i in zip(choices, case, strict=True)), marks=() if case in chosen else pytest.mark.full
        )
        for case in every
    ]


def _pairs(cases: Iterable[tuple[int, ...]]) -> list[Any]:
    return [pair for case in cases for pair in combinations(enumerate(case), 2)]
