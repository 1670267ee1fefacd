"""The cases of a fold, as data: the documentation is made from them, and a test requires their counter-examples."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One numbered case of a fold: an equation, and when it holds.

    Attributes:
        number: as `A1`; cases with one number are rows of one case, and only the first has an equation.
        equation: what is equal to what, in words and `code`.
        condition: when it holds.
        counter_example: what goes wrong without the condition; empty where there is no condition.
        test: the test that shows the counter-example, `folding/test_widen.py::test_kept_with_its_reason[SiLU twice]`.
    """

    number: str
    equation: str
    condition: str
    counter_example: str = ""
    test: str = ""
