"""Is a graph right at a size that Python's decisions seem to exclude? A recording at that size is compared with it.

Many decisions do not matter: `if batch != positions.shape[0]: positions = positions.expand(batch, -1)` leaves out an
operation that would do nothing. A probe is a recording at such a size. Where it has the operations of the graph, but
for some that do nothing at that size, and the same numbers for all that may vary still, its answers are one more way to
run the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import fx

from utcompile.graph import Seen, Size, Symbol, info, value_of
from utcompile.graph.nested import alike
from utcompile.recording.derived import by_mode, finfo
from utcompile.recording.expressions import Expression
from utcompile.recording.recorded import Sized, SizedFloat
from utcompile.recording.recorder import Recorder
from utcompile.recording.size_nodes import SizeNodes

Sizes = Mapping[Symbol, int]
# lengths at which numbers are compared, in addition to the probe's own: few share a factor
_SPREAD = (2, 3, 5, 7, 11, 13, 17, 31, 64, 129)
_SAME_SHAPE = frozenset("expand expand_as broadcast_to repeat tile reshape view contiguous clone".split())
_UNKNOWN = object()


def translated(merged: SizeNodes, probe: Recorder, at: Sizes, varying: Iterable[Symbol]) -> dict[int, int] | None:
    """The serial numbers of a probe's nodes as those of a merged graph; None where it is another graph.

    Args:
        merged: the graph, with the sizes of its nodes.
        probe: a recording.
        at: the size of every symbol in the probe.
        varying: the symbols for all whose sizes the probe is an example; the others are as in `at`.
    """
    varying = list(varying)
    samples = [at, *({**at, **dict.fromkeys(varying, n)} for n in (_SPREAD if varying else ()))]
    ours = [n for n in merged.graph.nodes if info(n).serial]
    return _Match(samples, merged).run(ours, list(probe.graph.nodes))


class _Match:
    def __init__(self, samples: Sequence[Sizes], merged: SizeNodes) -> None:
        self.samples, self.exact = samples, merged.is_exact
        self.computed = merged.expressions()
        self.nodes: dict[fx.Node, fx.Node] = {}  # of the probe -> of the graph
        self.alias: dict[fx.Node, fx.Node] = {}  # in the graph: what does nothing -> what it is done to
        self.serials: dict[int, int] = {}
        self.by_serial: dict[int, tuple[fx.Node, tuple[int, ...] | None]] = {}

    def run(self, ours: Sequence[fx.Node], theirs: Sequence[fx.Node]) -> dict[int, int] | None:
        i = j = 0
        while i < len(ours) or j < len(theirs):
            ours_now, theirs_now = ours[i] if i < len(ours) else None, theirs[j] if j < len(theirs) else None
            if ours_now is not None and theirs_now is not None and self._are_one(ours_now, theirs_now):
                self._bind(theirs_now, ours_now)
                i, j = i + 1, j + 1
            elif ours_now is not None and self._does_nothing(ours_now, self._shapes_of):
                self.alias[ours_now] = self._resolved(ours_now.args[0])  # type: ignore[arg-type]
                i += 1
            elif theirs_now is not None and self._does_nothing(theirs_now, _seen_shape):
                self._bind(theirs_now, self.nodes[theirs_now.args[0]])  # type: ignore[index]
                j += 1
            else:
                return None
        return self.serials

    def _bind(self, theirs: fx.Node, ours: fx.Node) -> None:
        self.nodes[theirs] = ours
        self.serials[info(theirs).serial] = info(ours).serial
        self.by_serial[info(theirs).serial] = ours, _seen_shape(theirs, self.samples[0])

    def _resolved(self, node: fx.Node) -> fx.Node:
        while node in self.alias:
            node = self.alias[node]
        return node

    def _are_one(self, ours: fx.Node, theirs: fx.Node) -> bool:
        if ours.op != theirs.op or (ours.op != "placeholder" and ours.target != theirs.target):
            return False
        given = dict(theirs.kwargs)
        if _is_attention(theirs) and self._attends_to_one(theirs):
            given["is_causal"] = ours.kwargs.get("is_causal", False)
        same = alike((ours.args, dict(ours.kwargs)), (theirs.args, given), self._same)
        return same and self._have_one_shape(ours, theirs)

    def _attends_to_one(self, theirs: fx.Node) -> bool:
        """Whether one query sees one key, so that a causal mask hides nothing."""
        queries, keys = (self._resolved(self.nodes[n]) for n in theirs.args[:2])  # type: ignore[index]
        shapes = [self._shapes_of(n, sizes) for n in (queries, keys) for sizes in self.samples]
        return all(shape is not None and shape[-2] == 1 for shape in shapes)

    def _have_one_shape(self, ours: fx.Node, theirs: fx.Node) -> bool:
        """Whether the probe has the sizes that the graph knows without reading them: `x[:6]` has six rows at the
        recorded batches, and one at a batch of 1."""
        value, seen = value_of(ours), info(theirs).seen
        if value is None or not isinstance(seen, Seen) or len(value.shape) != len(seen.shape):
            return True
        known = [d for d in range(len(seen.shape)) if self.exact(ours, d)]
        return all(_at(value.shape[d], self.samples[0]) == seen.shape[d] for d in known)

    def _same(self, ours: object, theirs: object) -> bool:
        if isinstance(theirs, fx.Node):
            return isinstance(ours, fx.Node) and self._resolved(self.nodes.get(theirs, theirs)) is self._resolved(ours)
        if isinstance(ours, fx.Node) and ours in self.computed and isinstance(theirs, (Sized, SizedFloat)):
            return self._moved(theirs.expression) is self.computed[ours]
        here, *elsewhere = self.samples
        if self._value(ours, here) != theirs:
            return False
        return all(self._value(ours, sizes) == self._number(theirs, sizes) for sizes in elsewhere)

    def _moved(self, theirs: Expression) -> Expression | None:
        """A computation of the probe as one of the graph's nodes."""
        moved = {}
        for reading in theirs.readings():
            serial = self.serials.get(reading.serial)
            if serial is None:
                return None
            moved[reading] = Expression.reading(reading.op, serial, reading.dim)
        return theirs.replaced(moved)

    def _value(self, ours: object, sizes: Sizes) -> object:
        """The value of an argument of the graph at some sizes."""
        if not isinstance(ours, fx.Node):
            return ours
        size = info(ours).size
        if size is not None:
            return size.of(sizes)
        if ours.target is getattr:
            return getattr(value_of(ours.args[0]), str(ours.args[1]), _UNKNOWN)  # type: ignore[arg-type]
        if ours.target is by_mode:
            return ours.args[2]
        if ours.target is finfo:
            return finfo(self._value(ours.args[0], sizes), str(ours.args[1]))
        if ours.op == "get_attr" and ours.target == "training":
            return False
        return _UNKNOWN

    def _number(self, theirs: object, sizes: Sizes) -> object:
        """The value of an argument of the probe at some sizes, by the graph's own sizes."""
        if not isinstance(theirs, (Sized, SizedFloat)):
            return theirs
        known: dict[Expression, int] = {}
        for reading in theirs.expression.readings():
            node, seen = self.by_serial.get(reading.serial, (None, None))
            value = value_of(node) if node is not None else None
            dim = reading.dim
            if node is None or seen is None or value is None or reading.op != "size" or not self.exact(node, dim):
                return _UNKNOWN
            size = value.shape[dim]
            if _at(size, self.samples[0]) != seen[dim]:
                return _UNKNOWN  # the graph's sizes are not those of the probe
            known[reading] = _at(size, sizes)
        try:
            return theirs.expression.value(known)
        except (ArithmeticError, ValueError, TypeError):
            return _UNKNOWN

    def _does_nothing(self, node: fx.Node, shape: Callable[[object, Sizes], object]) -> bool:
        name = getattr(node.target, "__name__", str(node.target))
        if node.op not in ("call_method", "call_function") or name not in _SAME_SHAPE or not node.args:
            return False
        pairs = [(shape(node, s), shape(node.args[0], s)) for s in self.samples]
        return all(a is not None and a == b for a, b in pairs)

    def _shapes_of(self, node: object, sizes: Sizes) -> tuple[int, ...] | None:
        value = value_of(node) if isinstance(node, fx.Node) else None
        return None if value is None else tuple(_at(d, sizes) for d in value.shape)


def _is_attention(node: fx.Node) -> bool:
    return getattr(node.target, "__name__", "") == "scaled_dot_product_attention" and len(node.args) > 2


def _at(size: int | Size, sizes: Sizes) -> int:
    return size if isinstance(size, int) else size.of(sizes)


def _seen_shape(node: object, sizes: Sizes) -> tuple[int, ...] | None:
    seen = info(node).seen if isinstance(node, fx.Node) else None
    return seen.shape if isinstance(seen, Seen) else None
