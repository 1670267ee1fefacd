"""From the questions of several recordings to the guards of their one graph.

A call runs as a recording ran if every question that the recording asked has the same answer in the call. So the graph
is right for a call if some recording agrees with it in *all* of its questions: the answers of one recording belong
together. Then the answers are simplified, which never admits a call that runs like no recording:

1. a question whose answer is the same at all sizes is left out;
2. two recordings that differ in the answer to one question only show that it does not matter;
3. a recording whose answers are among another's is covered by that one;
4. two that differ in the bounds of one size only, with no gap between them, are one;
5. an answer is left out where the opposite answer needs no more than the others: `x != 1 or x == 1 and B == 1` is
   `x != 1 or B == 1`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from typing import cast

from torch import fx

from utcompile.errors import UtcError
from utcompile.graph import Size, Symbol, place_of
from utcompile.recording.expressions import Expression
from utcompile.recording.guards import Guard
from utcompile.recording.naming import dotted_names
from utcompile.recording.polynomials import Polynomial, is_never_negative, total
from utcompile.recording.polynomials import constant as constant_polynomial
from utcompile.recording.probes import translated
from utcompile.recording.questions import Questions
from utcompile.recording.recorder import Recorder
from utcompile.recording.size_nodes import SizeNodes
from utcompile.recording.ways import Answers, Condition, absorbed, joined, merged, tightest

_ORDER = {"ge": ("ge", True), "lt": ("ge", False), "le": ("ge", True), "gt": ("ge", False)}
_LONGEST = 120  # of a relation in a message


class Conditions:
    """The questions of recordings that are one graph, in terms of its sizes."""

    def __init__(self, sizes: SizeNodes) -> None:
        self.sizes = sizes
        self._known: dict[Expression, tuple[Condition, bool] | None] = {}
        self.lines: dict[Condition, str] = {}
        self._more: tuple[Answers, ...] = ()

    def ways(self, *more: Answers) -> list[Answers]:
        """The answers of each way to run this graph, simplified; with more ways that probes found."""
        self._more += more
        found = [self._answers(r.questions, {}) for r in self.sizes.recordings]
        return absorbed(joined([tightest(a) for a in merged([*found, *self._more])], self._between))

    def way_of(self, probe: Recorder, sizes: Mapping[Symbol, int], varying: Sequence[Symbol]) -> Answers | None:
        """The answers of one more recording; None where it is another graph.

        Questions about sizes that are read off tensors may have the probe's answers in other calls too, for which it is
        no proof. Where their answers are new, the way is limited to the sizes of the probe.
        """
        serials = translated(self.sizes, probe, sizes, varying)
        if serials is None:
            return None
        answers, known = self._answers(probe.questions, serials), self._answers(self.sizes.recordings[0].questions, {})
        new = [c for c, answer in answers.items() if c.bound is None and known.get(c) is not answer]
        for symbol in sizes if new else ():
            if symbol not in varying:
                pinned = self._named("eq", self.sizes.size({(symbol,): Fraction(1), (): Fraction(-sizes[symbol])}))
                self.lines.setdefault(pinned, self.lines[new[0]])
                answers[pinned] = True
        return answers

    def _answers(self, questions: Questions, serials: Mapping[int, int]) -> Answers:
        answers: Answers = {}
        for question, (answer, line) in self._asked(questions, serials):
            condition = self._condition(question)
            if condition is not None:
                one, same = condition
                answers[one] = answer is same
                self.lines.setdefault(one, line)
        return answers

    def refused(self, ways: Sequence[Answers], sizes: Mapping[Symbol, int], *, guess: bool = False) -> UtcError | None:
        """Why no way runs at some sizes, as far as sizes alone show.

        Args:
            ways: the answers of each way.
            sizes: the size of each symbol.
            guess: take the formula that fits the samples for sizes that are not known exactly.
        """
        known = self.sizes.fitted if guess else self.sizes.exact
        wrong = [next((c for c, a in way.items() if self._is_met(c, sizes, known) is (not a)), None) for way in ways]
        if not wrong or any(c is None for c in wrong):
            return None
        condition = cast(Condition, wrong[0])
        relation = condition.yes if ways[0][condition] else condition.no
        return Guard(relation, self.lines[condition]).refuse(", ".join(f"{s.name}={n}" for s, n in sizes.items()))

    def _is_met(
        self, condition: Condition, sizes: Mapping[Symbol, int], size_of: Callable[[Expression], int | Size | None]
    ) -> bool | None:
        if condition.bound is not None:
            relation, terms = condition.bound
            value = sum(f * math.prod(sizes[s] for s in m) for m, f in terms)
            return value >= 0 if relation == "ge" else value == 0
        expression = cast(Expression, condition.expression)
        readings = expression.readings()
        found = {
            r: size.of(sizes) if isinstance(size, Size) else size for r in readings if (size := size_of(r)) is not None
        }
        try:
            return bool(expression.value(found)) if len(found) == len(readings) else None
        except (ArithmeticError, ValueError, TypeError):
            return None

    def _asked(self, questions: Questions, serials: Mapping[int, int]) -> Iterator[tuple[Expression, tuple[bool, str]]]:
        """The questions that matter; those of a probe in terms of this graph's nodes."""

        def here(question: Expression) -> Expression:
            moved = {r: Expression.reading(r.op, serials[r.serial], r.dim) for r in question.readings()}
            return question.replaced(moved)

        for question, found in questions.asked.items():
            yield (here(question) if serials else question), found
        for question, (answer, line, dims) in questions.shaping.items():
            # where a size is read off its tensor anyway, it does not matter how it came to it
            nodes = [(self.sizes.nodes.get(serials.get(serial, serial)), dim) for serial, dim in dims]
            if any(self.sizes.is_exact(node, dim) for node, dim in nodes):
                yield (here(question) if serials else question), (answer, line)

    def _condition(self, question: Expression) -> tuple[Condition, bool] | None:
        """The condition of a question, and whether both have the same answer; None where the sizes do not matter."""
        if question not in self._known:
            self._known[question] = self._make(question)
        return self._known[question]

    def _make(self, question: Expression) -> tuple[Condition, bool] | None:
        if self.sizes.constant(question) is not None:
            return None
        if question.op in ("eq", "ne", *_ORDER):
            left, right = question.args
            if question.op in ("le", "gt"):  # a <= b is b >= a
                left, right = right, left
            sides = [self._rational(e) for e in (left, right)]
            if sides[0] is not None and sides[1] is not None:
                return self._bound(question.op, total(sides[0], sides[1], -1))
            relation, same = _ORDER.get(question.op, ("eq", question.op == "eq"))
            if relation == "eq" and _comes_first(right, left):
                left, right = right, left
            if self._is_clear(relation, left, right) or self.sizes.differ_by_a_constant(left, right):
                return None
            if relation == "eq" and left.op == "parts":
                return self._parts(left, right, same)
            asked = Expression.of(relation, left, right)
            no = Expression.of("lt" if relation == "ge" else "ne", left, right)
            return Condition(asked, self.text(asked), self.text(no), asked), same
        return Condition(question, self.text(question), f"not {self.text(question)}", question), True

    def _is_clear(self, relation: str, left: Expression, right: Expression) -> bool:
        """Whether `left >= right` has the same answer at all sizes."""
        if relation == "eq":
            return False
        (low, high), (least, most) = self.sizes.bounds(left), self.sizes.bounds(right)
        always = low is not None and most is not None and is_never_negative(total(low, most, -1))
        never = high is not None and least is not None and _is_positive(total(least, high, -1))
        return always or never

    def _parts(self, parts: Expression, count: Expression, same: bool) -> tuple[Condition, bool]:
        """The number of parts that a size is split into, as bounds of the size."""
        whole, step = (self._rational(a) for a in parts.args)
        number = self._rational(count)
        asked = Expression.of("eq", parts, count)
        if whole is None or step is None or number is None or {*step, *number} != {()}:
            return Condition(asked, self.text(asked), f"not {self.text(asked)}", asked), same
        size, low, high = str(self.sizes.size(whole)), step[()] * (number[()] - 1), step[()] * number[()]
        yes = f"{size} <= {high}" if not low else f"{low} < {size} <= {high}"
        no = f"{size} > {high}" if not low else f"not {yes}"
        return Condition(asked, yes, no, asked), same

    def _rational(self, e: Expression) -> Polynomial[Symbol] | None:
        constant = self.sizes.constant(e)
        if isinstance(constant, float) and math.isfinite(constant):
            return constant_polynomial(constant)
        return self.sizes.polynomial(e)

    def _bound(self, op: str, difference: Polynomial[Symbol]) -> tuple[Condition, bool] | None:
        """`difference >= 0` or `difference == 0`, with whole factors, the first of them positive."""
        scale = math.lcm(*(f.denominator for f in difference.values())) if difference else 1
        terms = {m: f * scale for m, f in difference.items()}
        relation, same = _ORDER.get(op, ("eq", op == "eq"))
        ordered = self.sizes.size(terms).terms
        if not [m for m, _ in ordered if m]:
            return None
        if relation == "ge":
            common = math.gcd(*(int(f) for m, f in ordered if m))
            # whole sizes: d >= 0 is d/common >= 0 with the constant rounded down
            terms = {m: f / common for m, f in terms.items() if m}
            rest = math.floor(difference.get((), Fraction(0)) * scale / common)
            if ordered[0][1] < 0:  # d >= 0 is not (-d - 1 >= 0)
                terms, rest, same = {m: -f for m, f in terms.items()}, -rest - 1, not same
            terms |= {(): Fraction(rest)} if rest else {}
        else:
            if ordered[-1][1] % math.gcd(*(int(f) for m, f in ordered if m)) and not ordered[-1][0]:
                return None  # whole sizes never meet it
            common = math.gcd(*(int(f) for _, f in ordered))
            terms = {m: f / common * (1 if ordered[0][1] > 0 else -1) for m, f in terms.items()}
        return self._named(relation, self.sizes.size(terms)), same

    def _named(self, relation: str, size: Size) -> Condition:
        bound = -next((f for m, f in size.terms if not m), Fraction(0))
        left, right = self._sides(Size(tuple((m, f) for m, f in size.terms if m)))
        if relation == "eq":
            yes, no = _related(left, "==", right, bound), _related(left, "!=", right, bound)
        else:
            strict = bound == 1 and right
            yes = f"{left} > {right}" if strict else _related(left, ">=", right, bound)
            no = (
                f"{left} <= {right}"
                if strict
                else _related(left, "<", right, bound)
                if right
                else f"{left} <= {bound - 1}"
            )
        return Condition((relation, size.terms), yes, no, bound=(relation, size.terms))

    def _between(self, symbols: tuple[Symbol, ...], low: Fraction, high: Fraction | None, like: Condition) -> Answers:
        """The answers that say that a product of symbols lies between two bounds, at the line of another condition."""
        one = {symbols: Fraction(1)}
        bounds = [(low, True)] if low > 0 else []
        bounds += [(high + 1, False)] if high is not None else []
        answers = {self._named("ge", self.sizes.size({**one, (): -bound})): answer for bound, answer in bounds}
        for condition in answers:
            self.lines.setdefault(condition, self.lines[like])
        return answers

    def _sides(self, varying: Size) -> tuple[str, str]:
        """`L - L2 >= 0` reads `L >= L2`: the terms that are added, and those that are subtracted."""
        added = Size(tuple((m, f) for m, f in varying.terms if f > 0))
        subtracted = Size(tuple((m, -f) for m, f in varying.terms if f < 0))
        return str(added), str(subtracted) if subtracted.terms else ""

    def text(self, expression: Expression) -> str:
        """An expression as a person reads it: sizes by their symbols, or by the node whose shape they are.

        Where all these nodes are of one module, it is named once: `layers.0.attn: bmm.shape[1] == sum.shape[0]`.
        """
        names = {r: self.name(r) for r in expression.readings()}
        places = {self._place(r) for r in names if self.sizes.exact(r) is None}
        shared = places.pop() if len(names) > 1 and len(places) == 1 else ""
        text = expression.text({r: name.removeprefix(f"{shared}.") for r, name in names.items()})
        whole = f"{text[:_LONGEST]}…" if len(text) > _LONGEST else text
        return f"{shared}: {whole}" if shared else whole

    def name(self, reading: Expression) -> str:
        """A reading's name: its polynomial, or where it is read."""
        found = self.sizes.exact(reading)
        if found is not None:
            text = str(found)
            return text if text.isalnum() else f"({text})"
        node = self._node(reading)
        word = "shape" if reading.op == "size" else "stride"
        return f"{self._names.get(node, node.name) if node is not None else '?'}.{word}[{reading.dim}]"

    def _node(self, reading: Expression) -> fx.Node | None:
        return self.sizes.nodes.get(reading.serial)

    def _place(self, reading: Expression) -> str:
        """The module in which a reading's node was called."""
        node = self._node(reading)
        return "" if node is None or node.op == "call_module" else place_of(node)

    @cached_property
    def _names(self) -> Mapping[fx.Node, str]:
        return dotted_names(self.sizes.graph)


def _comes_first(one: Expression, other: Expression) -> bool:
    """The order in which the sides of an equation are written: what is read first is first, numbers are last."""
    if "const" in (one.op, other.op):
        return one.op != "const"
    first, second = ([(r.serial, r.dim) for r in e.readings()] for e in (one, other))
    return (first, id(one)) < (second, id(other))


def _related(left: str, sign: str, right: str, bound: Fraction) -> str:
    if not right:
        return f"{left} {sign} {bound}"
    return f"{left} {sign} {right}" + (f"{'+' if bound > 0 else '-'}{abs(bound)}" if bound else "")


def _is_positive(polynomial: Polynomial[Symbol]) -> bool:
    return is_never_negative(polynomial) and polynomial.get((), Fraction(0)) > 0
