"""The matcher: it finds a pattern, anchored at its last line, among the values of a captured graph.

Lines are solved from the anchor upwards with backtracking. Every solution is one set of bindings: a name has one value,
and two layouts of the same numbers count as one value. All constraints of a solution hold at once; an alternative that
fails takes its bindings with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import permutations

from torch import fx

from utcompile.errors import UtcError
from utcompile.graph import GraphView, describe, is_state, tensor, value_of
from utcompile.matching.kin import Kin, kin
from utcompile.matching.parts import parts_of
from utcompile.matching.tails import Tails
from utcompile.matching.trace import Trace
from utcompile.ops import Trait, having, words
from utcompile.rules import CLASSES, Call, Expression, Head, Name, Path, Pattern, Spelling, Step

Bindings = dict[str, fx.Node]

CAP = 2_000_000  # attempts for one rule; ViT-B/16 under every shipped rule needs fewer than 20,000
_COMMUTATIVE = having(Trait.COMMUTATIVE)
_PLAIN = words(CLASSES)  # heads that one node's classes answer


class Engine:
    """Finds patterns in one graph.

    Args:
        view: the graph.
        library: the named patterns, which may be called like operations.
    """

    def __init__(self, view: GraphView, library: Mapping[str, Pattern]) -> None:
        self.view, self.library = view, library
        self.tails = Tails(view)
        self.trace: Trace | None = None
        self._attempts = 0
        self._solved: dict[tuple[str, fx.Node], tuple[Bindings, ...]] = {}
        self._current: tuple[int, Step] | None = None
        self._kept: dict[tuple[str, fx.Node], _Replayed] = {}
        # by identity, because comparing patterns compares long texts
        self._possible: dict[int, bool] = {}
        self._needs: dict[int, frozenset[str]] = {}

    def start(self) -> None:
        """Begin a new rule: the count of attempts starts at zero."""
        self._attempts = 0

    def again(self) -> Engine:
        """The engine for another match: solutions of named patterns are kept, those of rules are forgotten."""
        self.trace, self._current = None, None
        self._possible, self._needs = {}, {}
        return self

    # --- anchors ------------------------------------------------------------------------------------------------

    def anchors(self, pattern: Pattern) -> list[fx.Node]:
        """The nodes that can be the last line of a pattern, in graph order."""
        found = {n for s in pattern.spellings for n in self._ends(s.steps[-1].value, s)}
        return sorted(found, key=self.view.position.__getitem__)

    def _ends(self, expression: Expression, spelling: Spelling) -> set[fx.Node]:
        if isinstance(expression, Name):
            for step in spelling.steps:
                if step.targets == (expression.name,):
                    return self._ends(step.value, spelling)
        if not isinstance(expression, Call):
            return {n for n in self.view.nodes if value_of(n) is not None and not is_state(n)}
        found: set[fx.Node] = set()
        for head in expression.heads:
            if head.is_skip:
                found |= self._ends(expression.arguments[0], spelling)
            elif head.name in self.library:
                found.update(self.anchors(self.library[head.name]))
            elif head.name in Tails.words:
                ends = self.tails.ends(head.name)
                found.update(self._ends(expression.arguments[0], spelling) if ends is None else ends)
            else:
                found.update(self.view.by_class[head.name])
        return found

    def is_a(self, head: Head, node: fx.Node) -> bool:
        """Whether a node is an operation of one name or class, with the attributes of the pattern."""
        found = self.view.operations[node].attributes
        return head.name in self.view.classes[node] and all(
            same_attribute(found.get(k), v) for k, v in head.attributes.items()
        )

    # --- solving ------------------------------------------------------------------------------------------------

    def solve(self, pattern: Pattern, anchor: fx.Node) -> Iterator[Bindings]:
        """Every way to read a pattern at an anchor, the preferred alternatives first.

        The solutions of a named pattern are kept for later rules; with a trace everything is tried again.
        """
        if self.trace is not None or self.library.get(pattern.name) is not pattern:
            yield from self._solve(pattern, anchor)
            return
        if (pattern.name, anchor) not in self._kept:
            self._kept[pattern.name, anchor] = _Replayed(self._solve(pattern, anchor))
        yield from self._kept[pattern.name, anchor]

    def _solve(self, pattern: Pattern, anchor: fx.Node) -> Iterator[Bindings]:
        for spelling in pattern.spellings:
            if self.trace is None and not self._is_possible(spelling):
                continue
            last = spelling.steps[-1]
            yield from self._steps(spelling, len(spelling.steps) - 1, {last.targets[0]: anchor})

    def _is_possible(self, spelling: Spelling) -> bool:
        """Whether the graph has an operation for each required call; notes the classes that each name needs."""
        known = self._possible.get(id(spelling))
        if known is None:
            known = self._possible[id(spelling)] = all(self._occurs(step.value) for step in spelling.steps)
            needed = {s.targets[0]: self._needed(s.value) for s in spelling.steps if len(s.targets) == 1}
            for name in (n for step in spelling.steps for n in _names(step.value)):
                self._needs[id(name)] = needed.get(name.name, frozenset())
        return known

    def _occurs(self, expression: Expression) -> bool:
        if isinstance(expression, Name):
            return True
        if isinstance(expression, Path):
            return self._occurs(expression.source)
        return any(map(self._head_occurs, expression.heads)) and all(map(self._occurs, expression.arguments))

    def _head_occurs(self, head: Head) -> bool:
        if head.name in self.library:
            return any(map(self._is_possible, self.library[head.name].spellings))
        return head.name not in _PLAIN or bool(self.view.by_class.get(head.name))

    def _needed(self, expression: Expression) -> frozenset[str]:
        """The classes of which a line's operation must have one; empty where that is unknown."""
        if not isinstance(expression, Call) or any(h.name not in _PLAIN for h in expression.heads):
            return frozenset()
        return frozenset(h.name for h in expression.heads)

    def _steps(self, spelling: Spelling, index: int, env: Bindings) -> Iterator[Bindings]:
        if index < 0:
            yield env
            return
        step = spelling.steps[index]
        previous, self._current = self._current, (index, step)
        solutions = self._split(step, env) if len(step.targets) > 1 else self._assign(step, env)
        for bound in solutions:
            yield from self._steps(spelling, index - 1, bound)
            self._current = (index, step)
        self._current = previous

    def _assign(self, step: Step, env: Bindings) -> Iterator[Bindings]:
        target = step.targets[0]
        for bound, node in self._expression(step.value, env[target], env):
            yield {**bound, target: node}

    def _expression(self, expression: Expression, node: fx.Node, env: Bindings) -> Iterator[tuple[Bindings, fx.Node]]:
        """Every way in which `node` is the value of an expression, with the node that ends it."""
        self._attempts += 1
        if self._attempts > CAP:
            raise UtcError(
                f"a pattern needs more than {CAP:,} attempts",
                why="its paths or alternatives overlap too much",
                fix="lower `max` of a path, or bind more names",
            )
        if isinstance(expression, Name):
            if self.trace is None and self._is_futile(expression, node):
                return
            bound = self._name(expression.name, node, env)
            if bound is not None:
                yield bound, node
        elif isinstance(expression, Path):
            yield from self._path(expression, node, env)
        else:
            for head in expression.heads:
                yield from self._call(head, expression, node, env)

    def _is_futile(self, name: Name, node: fx.Node) -> bool:
        """Whether the line that makes a name would fail at a node."""
        needed, chain = self._needs.get(id(name), frozenset[str]()), self.view.layout_chain(node)
        return bool(needed) and all(needed.isdisjoint(self.view.classes[n]) for n in chain)

    def _name(self, name: str, node: fx.Node, env: Bindings) -> Bindings | None:
        known = env.get(name)
        if known is None:
            return {**env, name: node}
        if known is node or self.view.without_layout(known) is self.view.without_layout(node):
            return env
        self._miss(node, f"'{name}' is {known.name} already, and {node.name} is another value")
        return None

    def _call(self, head: Head, call: Call, node: fx.Node, env: Bindings) -> Iterator[tuple[Bindings, fx.Node]]:
        if head.is_skip:
            if not any(self._present(h, node) for h in call.heads[:-1]):  # a norm that is there is always taken
                yield from self._expression(call.arguments[0], node, env)
        elif head.name in self.library:
            yield from self._named(head, call, node, env)
        elif head.name in Tails.words:
            yield from self._tail(head.name, call, node, env)
        else:
            yield from self._operation(head, call, node, env)

    def _tail(self, word: str, call: Call, node: fx.Node, env: Bindings) -> Iterator[tuple[Bindings, fx.Node]]:
        """A structural word: its operand is one of the values from which its way to the node begins."""
        walk = self.tails.walk(word, node)
        if word == "block_end" and self._ffn_follows(node):
            walk = ()
        if not walk:
            self._miss(node, self.tails.missed(word), call)
        for source in walk:
            for bound, _ in self._expression(call.arguments[0], source, env):
                yield from self._added_to(call, node, bound)

    def _added_to(self, call: Call, node: fx.Node, env: Bindings) -> Iterator[tuple[Bindings, fx.Node]]:
        """The second operand of a word, if it has one: in `branch_tail(c, x)`, the branch is added to x."""
        if len(call.arguments) == 1:
            yield env, node
        elif node in self.tails.branches:
            for added, _ in self._expression(call.arguments[1], self.tails.branches[node], env):
                yield added, node

    def _ffn_follows(self, node: fx.Node) -> bool:
        """Whether the next branch that is added to a value is a feed-forward network that reads it."""
        starts = {self.view.without_layout(node), self.tails.normed(node)}
        return any(
            self.view.without_layout(inner["x"]) in starts
            for branch in self.tails.branches_of(node)
            for name in ("ffn", "gated_ffn")
            for inner in self._solutions(name, branch)
        )

    def _present(self, head: Head, node: fx.Node) -> bool:
        """Whether an alternative before `skip` is here."""
        if head.name in self.library:
            return any(self._solutions(head.name, n) for n in self.view.layout_chain(node))
        return any(self.is_a(head, n) for n in self.view.layout_chain(node))

    def _operation(self, head: Head, call: Call, node: fx.Node, env: Bindings) -> Iterator[tuple[Bindings, fx.Node]]:
        candidates = [n for n in self.view.layout_chain(node) if head.name in self.view.classes[n]]
        if not candidates:
            inner = self.view.without_layout(node)
            self._miss(inner, f"the pattern needs {call.text}, and this is {named(inner, self.view)}", call)
        for candidate in candidates:
            op = self.view.operations[candidate]
            wrong = next((a for a, v in head.attributes.items() if not same_attribute(op.attributes.get(a), v)), None)
            if wrong is not None:
                self._miss(
                    candidate,
                    f"the pattern needs {wrong}={head.attributes[wrong]!r}, and it is {op.attributes.get(wrong)!r}",
                    call,
                )
                continue
            if len(call.arguments) > len(op.inputs):
                self._miss(
                    candidate,
                    f"the pattern has {len(call.arguments)} operands, and the operation reads {len(op.inputs)}",
                    call,
                )
                continue
            orders = permutations(op.inputs, len(call.arguments)) if op.name in _COMMUTATIVE else (op.inputs,)
            for operands in orders:
                for bound in self._operands(call.arguments, operands, env):
                    yield bound, candidate

    def _operands(
        self, arguments: tuple[Expression, ...], operands: tuple[fx.Node, ...], env: Bindings
    ) -> Iterator[Bindings]:
        if not arguments:
            yield env
            return
        for bound, _ in self._expression(arguments[0], operands[0], env):
            yield from self._operands(arguments[1:], operands[1:], bound)

    def _named(self, head: Head, call: Call, node: fx.Node, env: Bindings) -> Iterator[tuple[Bindings, fx.Node]]:
        """A named pattern as an operation: its `y` is the value, its `x` the operand."""
        for candidate in self.view.layout_chain(node):
            for inner in self._solutions(head.name, candidate):
                if not call.arguments:
                    yield env, candidate
                    continue
                for bound, _ in self._expression(call.arguments[0], inner["x"], env):
                    yield bound, candidate

    def _solutions(self, name: str, anchor: fx.Node) -> tuple[Bindings, ...]:
        if (name, anchor) not in self._solved:
            previous, self.trace = self.trace, None
            found: dict[fx.Node, Bindings] = {}
            for env in self.solve(self.library[name], anchor):
                found.setdefault(env["x"], env)
            self.trace = previous
            self._solved[name, anchor] = tuple(found.values())
        return self._solved[name, anchor]

    def _path(self, path: Path, node: fx.Node, env: Bindings) -> Iterator[tuple[Bindings, fx.Node]]:
        """Breadth first from the end, so that the shortest witness comes first."""
        names = {h.name for h in path.through}
        frontier, seen = [node], {node}
        for length in range(path.max + 1):
            if length >= path.min:
                for end in frontier:
                    for bound, _ in self._expression(path.source, end, env):
                        yield bound, node
            following: list[fx.Node] = []
            for end in frontier:
                for current in self.view.layout_chain(end):
                    if not names & self.view.classes[current]:
                        continue
                    for source in self.view.sources(current):
                        if source not in seen:
                            seen.add(source)
                            following.append(source)
            frontier = following

    def _split(self, step: Step, env: Bindings) -> Iterator[Bindings]:
        """`q, k, v = split(t)`: distinct parts of one value, by unbind, chunk, split, or indexing."""
        call = step.value
        assert isinstance(call, Call)
        bound = [env[t] for t in step.targets if t in env]
        parts = [parts_of(self.view, node) for node in bound]
        sources = [s for s in parts[0] if all(s in found for found in parts[1:])]
        if not sources:
            self._miss(bound[0], f"the pattern needs the parts of one value in {step.text!r}", call)
            return
        for source in sources:
            ranks = [found[source] for found in parts]
            if ranks != sorted(set(ranks)):
                self._miss(bound[0], f"the parts come in another order than {', '.join(step.targets)}", call)
                continue
            for env_bound, _ in self._expression(call.arguments[0], source, env):
                yield env_bound

    def _miss(self, node: fx.Node, reason: str, call: Call | None = None) -> None:
        if self.trace is not None and self._current is not None:
            near = kin(call, node, self.view) if call is not None else Kin.SAME
            self.trace.note(*self._current, node, reason, call, near)


class _Replayed:
    """The items of an iterator, each computed once, when it is first needed."""

    def __init__(self, source: Iterator[Bindings]) -> None:
        self._source, self._found = source, list[Bindings]()

    def __iter__(self) -> Iterator[Bindings]:
        index = 0
        while True:
            if index == len(self._found):
                following = next(self._source, None)
                if following is None:
                    return
                self._found.append(following)
            yield self._found[index]
            index += 1


def _names(expression: Expression) -> Iterator[Name]:
    """The names that an expression reads."""
    if isinstance(expression, Name):
        yield expression
    else:
        for inner in expression.arguments if isinstance(expression, Call) else (expression.source,):
            yield from _names(inner)


def same_attribute(found: object, needed: object) -> bool:
    """Whether attributes are equal as numbers; `stride=2` is equal to `(2, 2)`."""
    if isinstance(found, (tuple, list)) and not isinstance(needed, (tuple, list)):
        return all(f == needed for f in found)
    if isinstance(found, (tuple, list)) and isinstance(needed, (tuple, list)):
        return tuple(found) == tuple(needed)
    return found == needed


def named(node: fx.Node, view: GraphView) -> str:
    """The operation of a node, in a word or two."""
    name = view.operations[node].name
    return {"placeholder": "an input of the model", "get_attr": "a parameter or constant"}.get(name, name)


def shown(node: fx.Node) -> str:
    """A node with its shape, for messages."""
    value = value_of(node)
    return f"{describe(node)}{f' {tensor(node)}' if value else ''}"
