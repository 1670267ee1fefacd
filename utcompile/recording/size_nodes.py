"""Numbers that differ between recordings become nodes that compute them, right at every size.

A size is known exactly where it is a polynomial of the sizes that vary and nothing piecewise has happened on the way
(`Exactness`); elsewhere it is read off its tensor in the call. So a polynomial through the recorded sizes is never
taken for more than it shows: `8 - B` and `-B % 8` agree at 2, 3 and 5.
"""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from fractions import Fraction
from functools import cached_property

from torch import fx

from utcompile.graph import Computed, Fitter, Seen, Size, Symbol, Value, info
from utcompile.graph.value import Term
from utcompile.recording.exactness import Exactness
from utcompile.recording.expressions import FUNCTIONS, Expression, Number
from utcompile.recording.polynomials import Polynomial, combined, is_never_negative, total
from utcompile.recording.polynomials import constant as constant_polynomial
from utcompile.recording.recorded import Sized, SizedFloat
from utcompile.recording.recorder import Recorder
from utcompile.recording.samples import Sample

Bounds = tuple[Polynomial[Symbol] | None, Polynomial[Symbol] | None]
Made = Number | fx.Node  # a number that is the same at all sizes, or the node that computes it


class SizeNodes:
    """The numbers of one graph that is made of several recordings.

    Args:
        recordings: one per sample; the first one's graph is the one that is extended.
        samples: the sizes and modes at which they were recorded.
        sources: where each symbol is read: number of the input tensor, and dimension.
    """

    def __init__(
        self, recordings: Sequence[Recorder], samples: Sequence[Sample], sources: dict[Symbol, tuple[int, int]]
    ) -> None:
        first = recordings[0]
        self.graph, self.recordings = first.graph, recordings
        self.fit = Fitter(list(sources), [s.sizes for s in samples])
        self.inputs = {s: (first.inputs[i], dim) for s, (i, dim) in sources.items()}
        self.order: dict[Symbol | Expression, int] = {s: i for i, s in enumerate(sources)}
        self.nodes = {info(n).serial: n for n in self.graph.nodes if info(n).serial}
        self.place = {n: i for i, n in enumerate(self.graph.nodes)}
        entries = [n for n in self.graph.nodes if n.op == "placeholder" or n in first.inputs]
        self.after = max(entries, key=self.place.__getitem__)
        self.exactness = Exactness()
        self._known: dict[Hashable, fx.Node] = {}
        self._made: dict[Expression, Made] = {}
        self._polynomials: dict[Expression, Polynomial[Symbol] | None] = {}
        self._constants: dict[Expression, Number | None] = {}
        self._free: dict[tuple[int, ...], Size] = {}
        self._storages: dict[int, int] = {}

    # --- what is known of a node's sizes ------------------------------------------------------------------------------

    def describe(self, node: fx.Node, seen: Sequence[Seen]) -> None:
        """Write the value of a merged node, and note whether its sizes are known exactly."""
        dims: list[int | Size] = []
        whole: list[bool] = []
        cut = self._cut_both_ways[info(node).serial]
        for sizes in zip(*(s.shape for s in seen), strict=True):
            found = self.fit(sizes)
            exact = isinstance(found, int) or (found is not None and found.is_whole)
            whole.append(exact and not cut.intersection((len(whole), None)))
            if found is None or (isinstance(found, Size) and info(node).size_of_data):
                found = self._free.setdefault(sizes, free_size(f"s{len(self._free)}", sizes[0]))
            dims.append(found)
        number = self._storages.setdefault(seen[0].storage, len(self._storages))
        info(node).value = Value(tuple(dims), seen[0].dtype, seen[0].device, number)
        self.exactness.visit(node, [s.shape for s in seen], tuple(whole))

    @cached_property
    def _cut_both_ways(self) -> Mapping[int, set[int | None]]:
        """By serial number of a node, the dimensions that a slice cuts off in some recordings and not in others.

        Their sizes have two formulas, so none that goes through the samples says anything (None: any dimension).
        """
        found: dict[int, set[int | None]] = defaultdict(set)
        answers: dict[Expression, bool] = {}
        for shaping in (r.questions.shaping for r in self.recordings):
            for question, (answer, _, dims) in shaping.items():
                if answers.setdefault(question, answer) != answer:
                    for serial, dim in dims:
                        found[serial].add(dim)
        return found

    def is_exact(self, node: fx.Node | None, dim: int | None) -> bool:
        """Whether a polynomial gives the size of a node's dimension at all sizes."""
        dims = self.exactness.dims.get(node, ()) if node is not None else ()
        return dim is None or (bool(dims) and -len(dims) <= dim < len(dims) and dims[dim])

    def exact(self, reading: Expression) -> int | Size | None:
        """A reading as a number or a polynomial; None where it must be read off its tensor."""
        return self.fitted(reading) if self.is_exact(self.nodes.get(reading.serial), reading.dim) else None

    def fitted(self, reading: Expression) -> int | Size | None:
        """The number or polynomial that fits a size in all samples; it may be wrong at other sizes."""
        node = self.nodes.get(reading.serial)
        if reading.op != "size" or node not in self.exactness.shapes:
            return None
        return self.fit([shape[reading.dim] for shape in self.exactness.shapes[node]])

    def seen(self, reading: Expression) -> list[int]:
        """The values of a reading, as far as recordings know it."""
        known = [r.metadata.readings.get(reading) for r in self.recordings]
        if reading.op == "size" and reading.serial in self.nodes:
            shapes = self.exactness.shapes[self.nodes[reading.serial]]
            known = [shape[reading.dim] if n is None else n for n, shape in zip(known, shapes, strict=True)]
        return [n for n in known if n is not None]

    # --- expressions as polynomials -----------------------------------------------------------------------------------

    def polynomial(self, expression: Expression) -> Polynomial[Symbol] | None:
        """An expression as a polynomial of the symbols, without its zero terms; None where it is none."""
        self._analyse(expression)
        return self._polynomials[expression]

    def differ_by_a_constant(self, left: Expression, right: Expression) -> bool:
        """Whether the difference of two numbers is the same in every call, also where sizes are read off tensors."""
        one, other = self._in_readings(left), self._in_readings(right)
        return one is not None and other is not None and set(total(one, other, -1)) <= {()}

    def _in_readings(self, e: Expression) -> Polynomial[Symbol | Expression] | None:
        """An expression as a polynomial of sizes and of readings that no polynomial gives."""
        known: dict[Expression, Polynomial[Symbol | Expression] | None] = {}
        for one in e.walk():
            exact = self.polynomial(one)
            if exact is not None:
                known[one] = {(*m,): f for m, f in exact.items()}
            elif one.is_reading:
                self.order.setdefault(one, len(self.order))
                known[one] = {(one,): Fraction(1)}
            else:
                parts = [p for a in one.args if (p := known[a]) is not None]
                whole = len(parts) == len(one.args)
                known[one] = combined(one.op, parts, self.order.__getitem__) if whole else None
        return known[e]

    def constant(self, expression: Expression) -> Number | None:
        """The value of an expression whose readings are all the same in every call; None for others."""
        self._analyse(expression)
        return self._constants[expression]

    def _analyse(self, expression: Expression) -> None:
        stack = [expression]
        while stack:
            e = stack[-1]
            missing = [] if e in self._constants else [a for a in e.args if a not in self._constants]
            if missing:
                stack += missing
                continue
            if e not in self._constants:
                self._constants[e] = self._constant_of(e)
                self._polynomials[e] = self._polynomial_of(e)
            stack.pop()

    def _constant_of(self, e: Expression) -> Number | None:
        if e.op == "const":
            return e.number
        if e.is_reading:
            found = self.exact(e)
            return found if isinstance(found, int) else None
        parts = [self._constants[a] for a in e.args]
        if any(p is None for p in parts):
            return None
        try:
            return FUNCTIONS[e.op](*parts)
        except (ArithmeticError, ValueError, TypeError):
            return None

    def _polynomial_of(self, e: Expression) -> Polynomial[Symbol] | None:
        constant = self._constants[e]
        if isinstance(constant, int):
            return constant_polynomial(int(constant))
        if e.is_leaf:
            found = self.exact(e) if e.is_reading else None
            return dict(found.terms) if isinstance(found, Size) else None
        parts = [p for a in e.args if (p := self._polynomials[a]) is not None]
        return combined(e.op, parts, self.order.__getitem__) if len(parts) == len(e.args) else None

    def bounds(self, expression: Expression) -> Bounds:
        """Polynomials between which a number lies at all sizes (from 0 on), where some are found."""
        found: dict[Expression, Bounds] = {}
        for e in expression.walk():
            exact, constant = self.polynomial(e), self.constant(e)
            if exact is None and isinstance(constant, float) and math.isfinite(constant):
                exact = constant_polynomial(constant)
            found[e] = (exact, exact) if exact is not None else self._bounds_of(e, [found[a] for a in e.args])
        return found[expression]

    def _bounds_of(self, e: Expression, of: list[Bounds]) -> Bounds:
        if e.op == "size":
            return {}, None
        if e.op in ("floordiv", "truediv", "mod", "mul"):
            least, divisor = of[0][0], of[1][0]
            is_number = divisor is not None and divisor == of[1][1] and set(divisor) == {()}
            if divisor is not None and is_number and divisor[()] > 0 and least is not None and is_never_negative(least):
                return self._scaled(e.op, divisor[()], least, of[0][1])
        low = [b[0] for b in of]
        if e.op in ("int", "floor", "trunc") and low[0] is not None and is_never_negative(low[0]):
            return (low[0] if all(f.denominator == 1 for f in low[0].values()) else {}), of[0][1]
        if e.op == "min":
            return ({} if all(b is not None and is_never_negative(b) for b in low) else None), of[0][1] or of[1][1]
        if e.op in ("max", "add") and all(b is not None and is_never_negative(b) for b in low):
            return low[0], None
        return None, None

    def _scaled(self, op: str, factor: Fraction, low: Polynomial[Symbol], high: Polynomial[Symbol] | None) -> Bounds:
        if op == "mod":
            return {}, {(): factor}
        times = factor if op == "mul" else 1 / factor
        least = {} if op == "floordiv" else {m: f * times for m, f in low.items()}
        return least, None if high is None else {m: f * times for m, f in high.items()}

    def expressions(self) -> dict[fx.Node, Expression]:
        """The expressions of the nodes that are made so far, except for polynomials of the symbols."""
        return {n: e for e, n in self._made.items() if isinstance(n, fx.Node) and self.polynomial(e) is None}

    # --- nodes --------------------------------------------------------------------------------------------------------

    def number(self, values: Sequence[object], before: fx.Node) -> Made | None:
        """A number that was computed from sizes, as a number or a node; None where the recordings computed it
        otherwise, so that nothing is known of other sizes."""
        expressions = [
            v.expression if isinstance(v, (Sized, SizedFloat)) else Expression.const(v)
            for v in values
            if isinstance(v, (int, float))
        ]
        if len(expressions) < len(values) or len({self._canonical(e) for e in expressions}) > 1:
            return None
        return self.emit(expressions[0], before)

    def _canonical(self, expression: Expression) -> Hashable:
        found = self.polynomial(expression)
        if found is not None:
            return frozenset(found.items())
        constant = self.constant(expression)
        return expression if constant is None else (type(constant), constant)

    def emit(self, expression: Expression, before: fx.Node) -> Made:
        """A number, or a node that computes it, before another node."""
        stack = [expression]
        while stack:
            e = stack[-1]
            missing = [] if self._is_simple(e) else [a for a in e.args if a not in self._made]
            if missing:
                stack += missing
                continue
            if e not in self._made:
                self._made[e] = self._emit_one(e, before)
            stack.pop()
        return self._made[expression]

    def _is_simple(self, e: Expression) -> bool:
        return e.is_leaf or self.polynomial(e) is not None or self.constant(e) is not None

    def _emit_one(self, e: Expression, before: fx.Node) -> Made:
        found = self.polynomial(e)
        if found is not None:
            if not found or set(found) == {()}:
                return int(found.get((), Fraction(0)))
            return self.polynomial_node(self.size(found))
        constant = self.constant(e)
        if constant is not None:
            return constant
        if e.is_reading:
            return self._read(e)
        operands = [self._made[a] for a in e.args]
        with self.graph.inserting_before(before):
            made = self.graph.call_function(FUNCTIONS[e.op], tuple(operands))
        known = tuple(info(o).size if isinstance(o, fx.Node) else o for o in operands)
        info(made).size, info(made).derived = Computed(FUNCTIONS[e.op], known), True
        self.exactness.inexact.add(made)
        return made

    def _read(self, reading: Expression) -> fx.Node:
        source = self.nodes[reading.serial]
        with self.graph.inserting_after(source):
            made = self.graph.call_method(reading.op, (source, reading.dim))
        values = self.seen(reading) or [1]
        found = self.fit(values) if len(values) == len(self.recordings) else None
        info(made).size = found if isinstance(found, Size) else free_size("size", values[0])
        self.exactness.inexact.add(made)
        return made

    def size(self, polynomial: Polynomial[Symbol]) -> Size:
        """A polynomial as a `Size`, the terms with the most symbols first."""
        ordered = sorted(polynomial.items(), key=lambda t: (-len(t[0]), [self.order[s] for s in t[0]]))
        return Size(tuple(ordered))

    def polynomial_node(self, size: Size) -> fx.Node:
        """Nodes for a polynomial in the symbols, each made once, right after the inputs."""
        result: fx.Node | int | None = None
        built: tuple[Term, ...] = ()
        for symbols, factor in size.terms:
            part: fx.Node | int | None = None
            for i, symbol in enumerate(symbols):
                source = self.symbol(symbol)
                part = source if part is None else self._step(symbols[: i + 1], 1, part, source)
            if part is None:
                part = int(factor)
            elif factor != 1:
                part = self._step(symbols, int(factor), part, int(factor))
            built = (*built, (symbols, factor))
            result = part if result is None else self._sum(built, result, part)
        assert isinstance(result, fx.Node)
        return result

    def _sum(self, terms: tuple[Term, ...], left: fx.Node | int, right: fx.Node | int) -> fx.Node:
        return self.early(("sum", terms), lambda: self.graph.call_function(operator.add, (left, right)), Size(terms))

    def _step(self, symbols: tuple[Symbol, ...], factor: int, left: fx.Node | int, right: fx.Node | int) -> fx.Node:
        size = Size(((symbols, Fraction(factor)),))

        def build() -> fx.Node:
            return self.graph.call_function(operator.mul, (left, right))

        return self.early(("term", symbols, factor), build, size)

    def symbol(self, symbol: Symbol) -> fx.Node:
        """The node that reads a symbol off its input."""
        node, dim = self.inputs[symbol]
        size = Size((((symbol,), Fraction(1)),))
        return self.early(("symbol", symbol), lambda: self.graph.call_method("size", (node, dim)), size)

    def early(self, key: Hashable, build: Callable[[], fx.Node], size: Size | None = None) -> fx.Node:
        """A node right after the inputs, made once per key."""
        if key not in self._known:
            with self.graph.inserting_after(self.after):
                self._known[key] = self.after = build()
            if size is not None:
                info(self.after).size = size
        return self._known[key]


def free_size(name: str, example: int) -> Size:
    """A size of which only an example is known."""
    return Size((((Symbol(name, example),), Fraction(1)),))
