"""Guards become checks in the graph: sizes of inputs are checked early, the others where the graph has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction

from torch import fx

from utcompile.graph import Size, Symbol, info
from utcompile.recording.conditions import Conditions
from utcompile.recording.expressions import PREFIXES, SIGNS, Expression
from utcompile.recording.guards import Guard, SizeCheck, grouped
from utcompile.recording.size_nodes import free_size
from utcompile.recording.ways import Answers, Condition, shown

# What guards ask, all ways together. Two that read alike may ask of two tensors: their text is no key.
_Asked = frozenset[frozenset[tuple[Condition, bool]]]


def insert_guards(conditions: Conditions, ways: Sequence[Answers]) -> tuple[Guard, ...]:
    """Put checks of all decisions by sizes into the graph; returns the guards."""
    common = {c: a for c, a in ways[0].items() if all(w.get(c) is a for w in ways)} if ways else {}
    rest = [{c: a for c, a in way.items() if c not in common} for way in ways]
    asked: list[Sequence[Answers]] = [[{c: a}] for c, a in common.items()]
    if len(ways) > 1 and all(rest):
        asked.append(rest)
    return _Inserter(conditions).insert(asked)


class _Inserter:
    """Writes guards as code over sizes, and puts the calls that check them where the sizes are known."""

    def __init__(self, conditions: Conditions) -> None:
        self.conditions, self.sizes = conditions, conditions.sizes

    def insert(self, asked: Iterable[Sequence[Answers]]) -> tuple[Guard, ...]:
        early: dict[_Asked, tuple[Guard, Sequence[Answers]]] = {}
        late: dict[_Asked, tuple[Guard, Sequence[Answers]]] = {}
        for ways in asked:
            where = early if not self._free(ways) else late
            where.setdefault(frozenset(frozenset(way.items()) for way in ways), (self._guard(ways), ways))
        if early:
            symbols = list(dict.fromkeys(s for _, ways in early.values() for s in self._symbols(ways)))
            nodes = [self.sizes.symbol(s) for s in symbols]
            check = self._check([*early.values()], symbols, [])
            made = self.sizes.early("check", lambda: self.sizes.graph.call_function(check, tuple(nodes)))
            info(made).check = True
        for guard, ways in late.values():
            self._insert_late(guard, ways)
        # a guard that only an empty tensor would violate is checked, and not listed
        listed = (g for g, ways in [*early.values(), *late.values()] if not _holds_from_one(ways))
        return grouped(listed)

    def _guard(self, ways: Sequence[Answers]) -> Guard:
        texts = [shown(way) for way in ways]
        source = next(self.conditions.lines[c] for way in ways for c in way)
        symbols = self._symbols(ways)
        named = " and ".join(s.name for s in symbols)
        fix = f"capture it with an example that has {'these sizes' if len(symbols) > 1 else 'this size'}" + (
            f" of {named}" if named else ""
        )
        return Guard(" or ".join(dict.fromkeys(texts)), source, fix)

    def _readings(self, ways: Sequence[Answers]) -> list[Expression]:
        found = (r for way in ways for c in way if c.expression for r in c.expression.readings())
        return [r for r in dict.fromkeys(found) if not isinstance(self.sizes.exact(r), int)]

    def _free(self, ways: Sequence[Answers]) -> list[Expression]:
        """The readings that no polynomial of the symbols gives."""
        return [r for r in self._readings(ways) if self.sizes.exact(r) is None]

    def _symbols(self, ways: Sequence[Answers]) -> list[Symbol]:
        bounds = (terms for way in ways for c in way if c.bound for terms in c.bound[1])
        found = dict.fromkeys(s for monomial, _ in bounds for s in monomial)
        for reading in self._readings(ways):
            size = self.sizes.exact(reading)
            found |= dict.fromkeys(s for m, _ in size.terms for s in m) if isinstance(size, Size) else {}
        return list(found)

    def _check(
        self, pairs: Sequence[tuple[Guard, Sequence[Answers]]], symbols: list[Symbol], free: list[Expression]
    ) -> SizeCheck:
        names = {s: f"v{i}" for i, s in enumerate(symbols)}
        given = {r: f"v{len(symbols) + i}" for i, r in enumerate(free)}
        codes = [self._code(ways, names, given) for _, ways in pairs]
        shown = [*(s.name for s in symbols), *(self.conditions.name(r) for r in free)]
        return SizeCheck([g for g, _ in pairs], shown, codes)

    def _code(self, ways: Sequence[Answers], names: dict[Symbol, str], given: dict[Expression, str]) -> str:
        lines: list[str] = []
        known: dict[Expression, str] = {}
        texts = []
        for way in ways:
            parts = []
            for condition, answer in way.items():
                text = self._test(condition, names, given, lines, known)
                parts.append(text if answer else f"not ({text})")
            texts.append(" and ".join(parts))
        whole = texts[0] if len(texts) == 1 else " or ".join(f"({t})" for t in texts)
        return "\n".join([*lines, f"return {whole}"])

    def _test(
        self,
        condition: Condition,
        names: dict[Symbol, str],
        given: dict[Expression, str],
        lines: list[str],
        known: dict[Expression, str],
    ) -> str:
        if condition.bound is not None:
            relation, terms = condition.bound
            return f"{_code_of(terms, names)} {'>=' if relation == 'ge' else '=='} 0"
        assert condition.expression is not None
        readings = dict(given)
        for reading in condition.expression.readings():
            exact = self.sizes.exact(reading)
            if exact is not None:
                code = str(exact) if isinstance(exact, int) else _code_of(exact.terms, names)
                readings[reading] = code if code.isalnum() else f"({code})"
        return _in_steps(condition.expression, readings, lines, known)

    def _insert_late(self, guard: Guard, ways: Sequence[Answers]) -> None:
        graph, symbols, free = self.sizes.graph, self._symbols(ways), self._free(ways)
        given = [self.sizes.symbol(s) for s in symbols]
        place = {n: i for i, n in enumerate(graph.nodes)}
        at = max((self.sizes.nodes[r.serial] for r in free), key=place.__getitem__)
        at = max([at, *given], key=place.__getitem__)
        read: list[fx.Node] = []
        for reading in free:
            with graph.inserting_after(at):
                at = graph.call_method(reading.op, (self.sizes.nodes[reading.serial], reading.dim))
            info(at).size = free_size("size", (self.sizes.seen(reading) or [1])[0])
            read.append(at)
        with graph.inserting_after(at):
            made = graph.call_function(self._check([(guard, ways)], symbols, free), (*given, *read))
        info(made).check = True


def _code_of(terms: Sequence[tuple[tuple[Symbol, ...], Fraction]], names: dict[Symbol, str]) -> str:
    parts = [" * ".join([*([] if f == 1 and m else [f"({f})"]), *(names[s] for s in m)]) for m, f in terms]
    return " + ".join(parts) or "0"


def _in_steps(
    expression: Expression, readings: dict[Expression, str], lines: list[str], known: dict[Expression, str]
) -> str:
    """Code for an expression; a part that is used twice, or is long, gets its own line."""
    uses = Counter(a for e in expression.walk() for a in e.args)
    for e in expression.walk():
        if e.is_leaf:
            known[e] = e.text(readings)
        elif e not in known:
            text = _one_step(e, known)
            if e is not expression and (uses[e] > 1 or len(text) > 60):
                lines.append(f"t{len(lines)} = {text}")
                text = f"t{len(lines) - 1}"
            known[e] = text
    return known[expression]


def _one_step(e: Expression, known: dict[Expression, str]) -> str:
    operands = [known[a] if known[a].isalnum() else f"({known[a]})" for a in e.args]
    if e.op in SIGNS:
        return f"{operands[0]} {SIGNS[e.op]} {operands[1]}"
    return f"{PREFIXES[e.op]}{operands[0]}" if e.op in PREFIXES else f"{e.op}({', '.join(operands)})"


def _holds_from_one(ways: Sequence[Answers]) -> bool:
    """Whether bounds are met at all sizes except 0."""
    (way, *more) = ways
    for condition, answer in way.items():
        relation, terms = condition.bound or ("", ())
        factors = [f for m, f in terms if m]
        least = sum(f for _, f in terms)
        grows = bool(factors) and all(f > 0 for f in factors)
        if not grows or not (
            (relation == "ge" and answer and least >= 0) or (relation == "eq" and not answer and least > 0)
        ):
            return False
    return not more
