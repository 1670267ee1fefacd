"""Several recordings become one graph in which what varies is computed.

The recordings must be isomorphic. A value that differs between them is one of these, or an error that names it:
1. an integer that is one polynomial of the varying sizes through all samples (two sizes would be too few: `B**2` is
   affine at 2 and 3), or else the size of a tensor that the graph has, or a product of two;
2. a dtype, a device or a limit of a dtype (`torch.finfo(x.dtype).min`), that some tensor of the graph has too;
3. a float that is a constant times a power of a size: `L ** -0.5`;
4. what the model chose by its mode.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import fx

from utcompile.capture.derived import by_mode, finfo
from utcompile.capture.recorder import Recorder, Seen
from utcompile.capture.samples import Sample
from utcompile.errors import UtcError
from utcompile.graph import Fitter, Size, Symbol, Value, describe

_LIMITS = ("min", "max", "eps", "tiny", "smallest_normal", "resolution")
_POWERS = (-0.5, 0.5, -1.0, 1.0)


class Differs(Exception):
    """The recordings are not one graph."""

    def __init__(self, error: UtcError) -> None:
        super().__init__(str(error))
        self.error = error


def unify(
    recordings: Sequence[Recorder], samples: Sequence[Sample], sources: dict[Symbol, tuple[int, int]]
) -> fx.Graph:
    """Make the first recording's graph the one graph.

    Args:
        recordings: one a sample.
        samples: what they were recorded at.
        sources: where each symbol is read: number of the input tensor, and dimension.

    Raises:
        Differs: they are no one graph.
    """
    graphs = [r.graph for r in recordings]
    rows = list(zip(*(list(g.nodes) for g in graphs), strict=True))
    return _Merger(recordings[0], samples, sources).merge(rows)


def check_isomorphic(graphs: Sequence[fx.Graph], samples: Sequence[Sample]) -> None:
    """Two recordings must have the same operations, wired alike.

    Raises:
        Differs: they have not.
    """
    rows = list(zip(*(list(g.nodes) for g in graphs), strict=False))
    places = [{n: i for i, n in enumerate(g.nodes)} for g in graphs]
    for row in rows:
        what = {(n.op, n.target if n.op != "placeholder" else n.name) for n in row}
        wired = {tuple(p[i] for i in n.all_input_nodes) for p, n in zip(places, row, strict=True)}
        if len(what) > 1 or len(wired) > 1:
            why = "; ".join(f"at {s}: {_shown(n)}" for s, n in zip(samples, row, strict=True))
            at = next((n for n in row if n.meta.get("origin")), row[0])
            raise Differs(_error("the model runs different operations in different calls", at, why))
    if len({len(p) for p in places}) > 1:
        raise Differs(_error("the model runs more operations in some calls than in others", rows[-1][0], ""))


def _shown(node: fx.Node) -> str:
    return f"{node.op} {getattr(node.target, '__name__', node.target)}"


def _error(what: str, node: fx.Node, why: str) -> UtcError:
    fix = "name the dimensions that vary with dynamic=…; dynamic={} captures at the example's sizes only"
    return UtcError(what, where=describe(node), why=why, fix=fix)


class _Merger:
    """Turns differences into nodes that compute them."""

    def __init__(self, recording: Recorder, samples: Sequence[Sample], sources: dict[Symbol, tuple[int, int]]) -> None:
        self.graph, self.samples = recording.graph, samples
        self.fit = Fitter(list(sources), [s.sizes for s in samples])
        self.inputs = {s: (recording.inputs[i], dim) for s, (i, dim) in sources.items()}
        self.after = max(
            (n for n in self.graph.nodes if n.op == "placeholder" or n in recording.inputs), key=_order(self.graph)
        )
        self.known: dict[Any, fx.Node] = {}
        self.types: dict[tuple[Any, ...], fx.Node] = {}  # dtypes or devices, one a sample -> a node that has them
        self.dims: dict[tuple[int, ...], tuple[fx.Node, int]] = {}  # sizes that no polynomial gives
        self.free: dict[tuple[int, ...], Size] = {}
        self.data: list[tuple[int, ...]] = []  # sizes that depend on values
        self.storages: dict[int, int] = {}

    def merge(self, rows: list[tuple[fx.Node, ...]]) -> fx.Graph:
        """Merge the rows, in graph order."""
        for row in rows:
            node = row[0]
            for field in ("args", "kwargs"):
                setattr(node, field, self._value([getattr(n, field) for n in row], row))
            seen = [n.meta.pop("seen", None) for n in row]
            if isinstance(seen[0], Seen):
                self._describe(node, seen)
        return self.graph

    def _describe(self, node: fx.Node, seen: list[Any]) -> None:
        if len({len(s.shape) for s in seen}) > 1:
            raise Differs(_error("a tensor has another rank in another call", node, ""))
        dims: list[int | Size] = []
        for i, sizes in enumerate(zip(*(s.shape for s in seen), strict=True)):
            found = self.fit(sizes)
            if found is None or (isinstance(found, Size) and node.meta.get("size_of_data")):
                found = self.free.setdefault(sizes, _free(f"s{len(self.free)}", sizes[0]))
                if node.meta.get("size_of_data"):
                    self.data.append(sizes)
            if isinstance(found, Size) and not (found.is_whole and sizes not in self.free):
                self.dims.setdefault(sizes, (node, i))
            dims.append(found)
        number = self.storages.setdefault(seen[0].storage, len(self.storages))
        node.meta["value"] = Value(tuple(dims), seen[0].dtype, seen[0].device, number)
        for key in (tuple(s.dtype for s in seen), tuple(s.device for s in seen)):
            self.types.setdefault(key, node)

    # --- differences --------------------------------------------------------------------------------------------

    def _value(self, values: list[Any], row: tuple[fx.Node, ...]) -> Any:
        first = values[0]
        if isinstance(first, fx.Node):
            return first
        if isinstance(first, (tuple, list)) and all(type(v) is type(first) for v in values):
            if len({len(v) for v in values}) > 1:
                raise self._differ(values, row)
            parts = [self._value(list(v), row) for v in zip(*values, strict=True)]
            return parts if isinstance(first, list) else tuple(parts)
        if isinstance(first, dict) and all(isinstance(v, dict) and v.keys() == first.keys() for v in values):
            return {k: self._value([v[k] for v in values], row) for k in first}
        if isinstance(first, slice) and all(isinstance(v, slice) for v in values):
            return slice(*(self._value([getattr(v, f) for v in values], row) for f in ("start", "stop", "step")))
        if all(type(v) is type(first) and (v is first or _same(v, first)) for v in values[1:]):
            return first
        for derive in (self._size, self._type, self._limit, self._power, self._mode):
            found = derive(values, row[0])
            if found is not None:
                return found
        raise self._differ(values, row)

    def _differ(self, values: list[Any], row: tuple[fx.Node, ...]) -> Differs:
        shown = "; ".join(f"at {s}: {v!r}"[:90] for s, v in zip(self.samples, values, strict=True))
        return Differs(
            _error("an argument differs between calls and no size, dtype or mode explains it", row[0], shown)
        )

    def _size(self, values: list[Any], node: fx.Node) -> Any:
        if not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
            return None
        key = tuple(values)
        found = self._of_data(key)
        if found is not None:
            return found
        line = self.fit(key)
        if isinstance(line, Size) and line.is_whole:
            return self._polynomial(line)
        if key in self.dims:
            return self._dimension(key)
        for first, second in ((a, b) for a in self.dims for b in self.dims):
            ratios = {v / (a * b) if a * b else None for v, a, b in zip(key, first, second, strict=True)}
            ratio = next(iter(ratios))
            if len(ratios) == 1 and ratio is not None and ratio == int(ratio):
                return self._node(
                    key,
                    operator.mul,
                    self._dimension(first),
                    self._dimension(second),
                    after=node.prev,
                    times=int(ratio),
                )
        return None

    def _of_data(self, key: tuple[int, ...]) -> fx.Node | None:
        """`r·n + c` of a size n that depends on values, which may look like a polynomial of the batch by chance."""
        for sizes in self.data:
            steps = {
                (v - key[0], n - sizes[0]) for v, n in zip(key, sizes, strict=True) if n != sizes[0] or v != key[0]
            }
            ratios = {v / n if n else None for v, n in steps}
            ratio = next(iter(ratios), None)
            if len(ratios) == 1 and ratio is not None and ratio >= 1 and ratio == int(ratio):
                node, rest = self._dimension(sizes), key[0] - int(ratio) * sizes[0]
                node = self._step_of(("data", sizes, ratio), operator.mul, node, int(ratio), 1)
                return self._step_of(("data", sizes, ratio, rest), operator.add, node, rest, 0)
        return None

    def _step_of(self, key: Any, function: Callable[..., Any], node: fx.Node, value: int, neutral: int) -> fx.Node:
        return node if value == neutral else self._scalar(key, function, node, value)

    def _node(self, key: Any, function: Callable[..., Any], *args: Any, after: fx.Node, times: int = 1) -> fx.Node:
        with self.graph.inserting_after(after):
            made = self.graph.call_function(function, args)
        if times != 1:
            with self.graph.inserting_after(made):
                made = self.graph.call_function(operator.mul, (made, times))
        made.meta["size"] = _free("size", key[0])
        return made

    def _dimension(self, key: tuple[int, ...]) -> fx.Node:
        if ("dim", key) not in self.known:
            node, dim = self.dims[key]
            with self.graph.inserting_after(node):
                made = self.known["dim", key] = self.graph.call_method("size", (node, dim))
            found = self.fit(key)
            made.meta["size"] = found if isinstance(found, Size) else self.free[key]
        return self.known["dim", key]

    def _polynomial(self, size: Size) -> fx.Node:
        """Nodes for a polynomial in the symbols, each made once, right after the inputs."""
        total: fx.Node | int | None = None
        built: tuple[Any, ...] = ()
        for symbols, factor in size.terms:
            part: fx.Node | int | None = None
            for i, symbol in enumerate(symbols):
                source = self._symbol(symbol)
                part = source if part is None else self._step(symbols[: i + 1], 1, operator.mul, part, source)
            if part is None:
                part = int(factor)
            elif factor != 1:
                part = self._step(symbols, int(factor), operator.mul, part, int(factor))
            built = (*built, (symbols, factor))
            total = part if total is None else self._sum(built, total, part)
        assert isinstance(total, fx.Node)
        return total

    def _sum(self, terms: tuple[Any, ...], left: Any, right: Any) -> fx.Node:
        return self._early(("sum", terms), lambda: self.graph.call_function(operator.add, (left, right)), Size(terms))

    def _step(self, symbols: tuple[Symbol, ...], factor: int, function: Any, left: Any, right: Any) -> fx.Node:
        size = Size(((symbols, Fraction(factor)),))
        return self._early(("term", symbols, factor), lambda: self.graph.call_function(function, (left, right)), size)

    def _symbol(self, symbol: Symbol) -> fx.Node:
        node, dim = self.inputs[symbol]
        size = Size((((symbol,), Fraction(1)),))
        return self._early(("symbol", symbol), lambda: self.graph.call_method("size", (node, dim)), size)

    def _early(self, key: Any, build: Callable[[], fx.Node], size: Size) -> fx.Node:
        if key not in self.known:
            with self.graph.inserting_after(self.after):
                self.known[key] = self.after = build()
            self.after.meta["size"] = size
        return self.known[key]

    def _type(self, values: list[Any], node: fx.Node) -> fx.Node | None:
        """A dtype or device that a tensor has; the type of a device by name."""
        key = tuple(values)
        if isinstance(values[0], str):
            devices = next((k for k in self.types if [getattr(d, "type", None) for d in k] == values), None)
            return (
                self._attribute("type", key, self._attribute("device", devices, self.types[devices]))
                if devices
                else None
            )
        if not isinstance(values[0], (torch.dtype, torch.device)) or key not in self.types:
            return None
        return self._attribute("dtype" if isinstance(values[0], torch.dtype) else "device", key, self.types[key])

    def _attribute(self, name: str, key: Any, source: fx.Node) -> fx.Node:
        if (name, key) not in self.known:
            with self.graph.inserting_after(source):
                made = self.known[name, key] = self.graph.call_function(getattr, (source, name))
            made.meta["derived"] = True
        return self.known[name, key]

    def _limit(self, values: list[Any], node: fx.Node) -> fx.Node | None:
        """`torch.finfo(x.dtype).min`."""
        if not all(isinstance(v, float) for v in values):
            return None
        for key, source in list(self.types.items()):
            if not isinstance(key[0], torch.dtype) or not all(d.is_floating_point for d in key):
                continue
            dtype = self._attribute("dtype", key, source)
            for limit in _LIMITS:
                limits = [getattr(torch.finfo(d), limit) for d in key]
                factor = values[0] / limits[0]
                if all(n * factor == v for n, v in zip(limits, values, strict=True)):
                    found = self._scalar(("limit", key, limit), finfo, dtype, limit)
                    return self._times(("limit", key, limit, factor), found, factor)
        return None

    def _scalar(self, key: Any, function: Callable[..., Any], source: fx.Node, *rest: Any) -> fx.Node:
        if key not in self.known:
            with self.graph.inserting_after(source):
                made = self.known[key] = self.graph.call_function(function, (source, *rest))
            made.meta["derived"] = True
        return self.known[key]

    def _times(self, key: Any, source: fx.Node, factor: float) -> fx.Node:
        return source if factor == 1 else self._scalar(key, operator.mul, source, factor)

    def _power(self, values: list[Any], node: fx.Node) -> fx.Node | None:
        """A constant times a power of a size, where that is exact."""
        if not all(isinstance(v, float) for v in values):
            return None
        for symbol in self.inputs:
            sizes = [s.sizes[symbol] for s in self.samples]
            for power in _POWERS:
                factor = values[0] / sizes[0] ** power
                if all(factor * n**power == v for n, v in zip(sizes, values, strict=True)):
                    raised = self._scalar(("power", symbol, power), operator.pow, self._symbol(symbol), power)
                    self.after = max(self.after, raised, key=_order(self.graph))
                    return self._times(("power", symbol, power, factor), raised, factor)
        return None

    def _mode(self, values: list[Any], node: fx.Node) -> fx.Node | None:
        """What is one value in training and one in eval."""
        chosen = {s.training: v for s, v in zip(self.samples, values, strict=True)}
        if len(chosen) < 2 or not all(
            type(v) is type(chosen[s.training]) and _same(v, chosen[s.training])
            for s, v in zip(self.samples, values, strict=True)
        ):
            return None
        if not all(isinstance(v, (bool, int, float, str, type(None))) for v in chosen.values()):
            return None
        if "training" not in self.known:
            with self.graph.inserting_after(self.after):
                self.known["training"] = self.after = self.graph.get_attr("training")
            self.after.meta.update(state=False, derived=True)
        if chosen[True] is True and chosen[False] is False:
            return self.known["training"]
        key = ("mode", repr(chosen[True]), repr(chosen[False]))
        if key not in self.known:
            with self.graph.inserting_after(self.after):
                self.known[key] = self.after = self.graph.call_function(
                    by_mode, (self.known["training"], chosen[True], chosen[False])
                )
            self.after.meta["derived"] = True
        return self.known[key]


def _same(a: Any, b: Any) -> bool:
    try:
        return bool(a == b) or (isinstance(a, float) and a != a and b != b)
    except (RuntimeError, ValueError):
        return False


def _order(graph: fx.Graph) -> Callable[[fx.Node], int]:
    place = {n: i for i, n in enumerate(graph.nodes)}
    return lambda n: place[n]


def _free(name: str, example: int) -> Size:
    return Size((((Symbol(name, example),), Fraction(1)),))
