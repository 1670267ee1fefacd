"""The ways to run a graph, each the answers of one recording to Python's questions, and how they are simplified."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from utcompile.graph.value import Monomial, Term
from utcompile.recording.expressions import Expression

Bound = tuple[str, tuple[Term, ...]]  # "eq" or "ge", and the terms of a polynomial


@dataclass(frozen=True)
class Condition:
    """A question in one of few forms, so that questions which mean the same are equal.

    Attributes:
        key: equal for questions that mean the same.
        yes, no: how its two answers read.
        expression: the question, where it is no bound of a polynomial.
        bound: a polynomial of the sizes that is compared with 0: its terms and "eq" or "ge".
    """

    key: Expression | Bound
    yes: str
    no: str
    expression: Expression | None = None
    bound: Bound | None = None

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Condition) and self.key == other.key


Answers = dict[Condition, bool]


def merged(found: Sequence[Answers]) -> list[Answers]:
    """The answers of several recordings without those that do not matter, as their differences show."""
    left: list[Answers] = []
    for answers in found:
        if answers not in left:
            left.append(answers)
    changed = True
    while changed:
        changed = False
        for i, a in enumerate(left):
            for j in range(i + 1, len(left)):
                together = _merge(a, left[j])
                if together is not None:
                    left[j : j + 1] = []
                    left[i] = together
                    changed = True
                    break
            if changed:
                break
    return left


def _merge(a: Answers, b: Answers) -> Answers | None:
    if a.items() <= b.items():
        return a
    if b.items() <= a.items():
        return b
    if a.keys() == b.keys():
        different = [q for q in a if a[q] is not b[q]]
        if len(different) == 1:
            return {q: v for q, v in a.items() if q is not different[0]}
    return None


def absorbed(ways: Sequence[Answers]) -> list[Answers]:
    """Ways without answers whose opposite needs no more than the others: `c or not c and d` is `c or d`."""
    left = [dict(way) for way in ways]
    for way in left:
        for condition, answer in list(way.items()):
            rest = way.items() - {(condition, answer)}
            opposite = {(condition, not answer)}
            if any(
                other is not way and opposite <= other.items() and other.items() - opposite <= rest for other in left
            ):
                del way[condition]
    return left


def shown(answers: Answers) -> str:
    """Answers as a person reads them: `2 <= B <= 4 and L != 1`."""
    single = {c: found for c, a in answers.items() if (found := _single(c)) is not None and found[0] == "ge"}
    highest = {found[1]: found[2] - 1 for c, found in single.items() if not answers[c]}
    between = {c: highest[found[1]] for c, found in single.items() if answers[c] and found[1] in highest}
    covered = {single[c][1] for c in between}
    texts = []
    for condition, answer in answers.items():
        if condition in between:
            size, _, low = condition.yes.rpartition(" >= ")
            texts.append(f"{low} <= {size} <= {between[condition]}")
        elif condition not in single or answer or single[condition][1] not in covered:
            texts.append(condition.yes if answer else condition.no)
    return " and ".join(texts)


def tightest(answers: Answers) -> Answers:
    """Answers without bounds of one symbol that another one implies, and without those that are met at every size."""
    low: dict[Monomial, Fraction] = {}
    high: dict[Monomial, Fraction] = {}
    exactly: dict[Monomial, Fraction] = {}
    for condition, answer in answers.items():
        found = _single(condition)
        if found is None:
            continue
        relation, monomial, bound = found
        if relation == "eq" and answer:
            exactly[monomial] = bound
        elif relation == "ge" and answer:
            low[monomial] = max(low.get(monomial, bound), bound)
        elif relation == "ge":
            high[monomial] = min(high.get(monomial, bound - 1), bound - 1)

    def needed(condition: Condition, answer: bool) -> bool:
        found = _single(condition)
        if found is None:
            return not _always(condition, answer)
        relation, monomial, bound = found
        least, most = low.get(monomial, Fraction(0)), high.get(monomial)
        if monomial in exactly:
            return relation == "eq" and answer
        if relation == "eq":
            return answer or (bound >= least and (most is None or bound <= most))
        return (bound == least and bound > 0) if answer else bound - 1 == most

    return {c: a for c, a in answers.items() if needed(c, a)}


def _single(condition: Condition) -> tuple[str, Monomial, Fraction] | None:
    """A bound of one symbol (or product of symbols) alone: relation, symbols and bound."""
    if condition.bound is None:
        return None
    relation, terms = condition.bound
    varying = [(m, f) for m, f in terms if m]
    if len(varying) != 1 or varying[0][1] != 1:
        return None
    return relation, varying[0][0], -next((f for m, f in terms if not m), Fraction(0))


def _always(condition: Condition, answer: bool) -> bool:
    """Whether a bound of several symbols is met at all sizes."""
    if condition.bound is None:
        return False
    relation, terms = condition.bound
    factors = [f for m, f in terms if m]
    least = next((f for m, f in terms if not m), Fraction(0))
    grows = all(f > 0 for f in factors)
    return grows and ((relation == "ge" and answer and least >= 0) or (relation == "eq" and not answer and least > 0))


Between = Callable[[Monomial, Fraction, Fraction | None, Condition], Answers]


def joined(ways: Sequence[Answers], between: Between) -> list[Answers]:
    """Ways that differ in the bounds of one size only, with no gap between, as one: `L >= 2 or L == 1` is `L >= 1`.

    Args:
        ways: simplified.
        between: the answers that say that a size lies between two bounds.
    """
    left = list(ways)
    for i, j in itertools.combinations(range(len(left)), 2):
        together = _join(left[i], left[j], between)
        if together is not None:
            return joined([*left[:i], together, *left[i + 1 : j], *left[j + 1 :]], between)
    return left


def _join(a: Answers, b: Answers, between: Between) -> Answers | None:
    common = {c: v for c, v in a.items() if b.get(c) is v}
    own = [{c: v for c, v in way.items() if c not in common} for way in (a, b)]
    ranges = [_range(bounds) for bounds in own]
    first, second = ranges
    if first is None or second is None or first[0] != second[0]:
        return None
    (symbols, low, high), (_, least, most) = sorted((first, second), key=lambda r: r[1])
    if high is not None and least > high + 1:
        return None
    top = None if high is None or most is None else max(high, most)
    return {**common, **between(symbols, low, top, next(iter(own[0])))}


def _range(bounds: Answers) -> tuple[Monomial, Fraction, Fraction | None] | None:
    """The least and the largest size that bounds allow; None where they are not of one size, or leave a hole."""
    low, high = Fraction(0), None
    found: set[Monomial] = set()
    for condition, answer in bounds.items():
        single = _single(condition)
        if single is None or (single[0] == "eq" and not answer):
            return None
        relation, symbols, bound = single
        found.add(symbols)
        if relation == "eq" or answer:
            low = max(low, bound)
        if relation == "eq" or not answer:
            limit = bound if relation == "eq" else bound - 1
            high = limit if high is None else min(high, limit)
    return (found.pop(), low, high) if len(found) == 1 else None
