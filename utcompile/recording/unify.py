"""Several recordings become one graph in which what varies is computed.

The recordings must be isomorphic. A value that differs between them is one of these, or an error that names it:
1. a number that every recording computed in the same way from sizes that Python read (`SizeNodes`);
2. a dtype, a device or a limit of a dtype (`torch.finfo(x.dtype).min`), that some tensor of the graph has too;
3. what the model chose by its mode.
What Python decided on the way is checked in every call (`insert_guards`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import fx

from utcompile.errors import UtcError
from utcompile.graph import Seen, Symbol, describe, info
from utcompile.recording.conditions import Conditions
from utcompile.recording.derived import by_mode, finfo
from utcompile.recording.flags import insert_flag_checks
from utcompile.recording.guards import Guard
from utcompile.recording.insert_guards import insert_guards
from utcompile.recording.probes import translated
from utcompile.recording.questions import GRAD_MODE
from utcompile.recording.recorded import Sized, SizedFloat
from utcompile.recording.recorder import Recorder
from utcompile.recording.samples import Sample
from utcompile.recording.size_nodes import SizeNodes
from utcompile.recording.ways import Answers

_LIMITS = ("min", "max", "eps", "tiny", "smallest_normal", "resolution")


class Probe(Protocol):
    """Makes one more recording; None where the model does not run there."""

    def __call__(self, sizes: Mapping[Symbol, int], *, gradients: bool) -> Recorder | None: ...


class Differs(Exception):
    """The recordings are not one graph."""

    def __init__(self, error: UtcError) -> None:
        super().__init__(str(error))
        self.error = error


def unify(
    recordings: Sequence[Recorder],
    samples: Sequence[Sample],
    sources: dict[Symbol, tuple[int, int]],
    example: Mapping[Symbol, int],
    probe: Probe,
) -> tuple[fx.Graph, tuple[Guard, ...]]:
    """Make the first recording's graph the one graph; returns it with what must hold in every call.

    Args:
        recordings: one per sample.
        samples: what they were recorded at.
        sources: where each symbol is read: number of the input tensor, and dimension.
        example: the sizes of the example inputs.
        probe: makes one more recording, at sizes that the guards would refuse.

    Raises:
        Differs: they are no one graph, or it does not hold at the example's sizes.
        UtcError: the model runs otherwise without gradients.
    """
    graphs = [r.graph for r in recordings]
    rows = list(zip(*(list(g.nodes) for g in graphs), strict=True))
    if any(len({info(n).serial for n in row}) > 1 for row in rows):
        raise Differs(_error("the model reads sizes in another order in other calls", rows[0][0], ""))
    sizes = SizeNodes(recordings, samples, sources)
    graph = _Merger(sizes, samples).merge(rows)
    _check_grad_mode(sizes, samples[0].sizes, probe)
    conditions = Conditions(sizes)
    ways = _probed(conditions, samples[0].sizes, probe)
    refused = conditions.refused(ways, example)
    if refused is not None:
        raise Differs(refused)
    return graph, (*insert_guards(conditions, ways), *insert_flag_checks(sizes))


def _probed(conditions: Conditions, sizes: Mapping[Symbol, int], probe: Probe) -> list[Answers]:
    """The ways to run a graph, with those that recordings at a size of 1 add where it would be refused."""
    ways = conditions.ways()
    failed = False
    for symbols in [[symbol] for symbol in sizes] + ([list(sizes)] if len(sizes) > 1 else []):
        alone = {**sizes, **dict.fromkeys(symbols, 1)}
        if (failed and len(symbols) > 1) or conditions.refused(ways, alone) is None:
            continue
        recording = probe(alone, gradients=torch.is_grad_enabled())
        varying = [s for s in sizes if s not in symbols]
        way = None if recording is None else conditions.way_of(recording, alone, varying)
        failed |= way is None
        ways = ways if way is None else conditions.ways(way)
    return ways


def _check_grad_mode(sizes: SizeNodes, at: Mapping[Symbol, int], probe: Probe) -> None:
    """A graph is trained with gradients and used without: what a model does by that must not matter."""
    read = [r.questions.flags[0, GRAD_MODE] for r in sizes.recordings if (0, GRAD_MODE) in r.questions.flags]
    if not read:
        return
    enabled, line = read[0]
    recording = probe(at, gradients=not enabled)
    if recording is None or translated(sizes, recording, at, list(at)) is None:
        raise UtcError(
            "the model's forward chooses by torch.is_grad_enabled(), and a graph is one choice",
            where=line,
            why="with gradients and without it runs other operations",
            fix="choose by self.training instead",
        )


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
            at = next((n for n in row if info(n).origin), row[0])
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

    def __init__(self, sizes: SizeNodes, samples: Sequence[Sample]) -> None:
        self.sizes, self.graph, self.samples = sizes, sizes.graph, samples
        self.known: dict[Any, fx.Node] = {}
        self.types: dict[tuple[Any, ...], fx.Node] = {}  # dtypes or devices, one per sample -> a node that has them

    def merge(self, rows: list[tuple[fx.Node, ...]]) -> fx.Graph:
        """Merge the rows, in graph order."""
        for row in rows:
            node = row[0]
            for field in ("args", "kwargs"):
                setattr(node, field, self._value([getattr(n, field) for n in row], row))
            seen = [info(n).seen for n in row]
            for n in row:
                del info(n).seen
            if isinstance(seen[0], Seen):
                self._describe(node, seen)
        return self.graph

    def _describe(self, node: fx.Node, seen: list[Any]) -> None:
        if len({len(s.shape) for s in seen}) > 1:
            raise Differs(_error("a tensor has another rank in another call", node, ""))
        self.sizes.describe(node, seen)
        for key in (tuple(s.dtype for s in seen), tuple(s.device for s in seen)):
            self.types.setdefault(key, node)

    # --- differences --------------------------------------------------------------------------------------------

    def _value(self, values: list[Any], row: tuple[fx.Node, ...]) -> Any:
        first = values[0]
        if isinstance(first, fx.Node):
            return first
        if any(isinstance(v, (Sized, SizedFloat)) for v in values):
            found = self.sizes.number(values, row[0])
            if found is None:
                found = self._mode([_plain(v) for v in values], row[0])
            if found is None:
                raise self._differ(values, row)
            return found
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
        for derive in (self._type, self._limit, self._mode):
            found = derive(values, row[0])
            if found is not None:
                return found
        raise self._differ(values, row)

    def _differ(self, values: list[Any], row: tuple[fx.Node, ...]) -> Differs:
        shown = "; ".join(f"at {s}: {v!r}"[:90] for s, v in zip(self.samples, values, strict=True))
        return Differs(
            _error("an argument differs between calls and no size, dtype or mode explains it", row[0], shown)
        )

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
            info(made).derived = True
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
            info(made).derived = True
        return self.known[key]

    def _times(self, key: Any, source: fx.Node, factor: float) -> fx.Node:
        return source if factor == 1 else self._scalar(key, operator.mul, source, factor)

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
        training = self.sizes.early("training", lambda: self.graph.get_attr("training"))
        info(training).state, info(training).derived = False, True
        if chosen[True] is True and chosen[False] is False:
            return training
        choice = (training, chosen[True], chosen[False])
        made = self.sizes.early(("mode", repr(choice)), lambda: self.graph.call_function(by_mode, choice))
        info(made).derived = True
        return made


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, Sized) else float(value) if isinstance(value, SizedFloat) else value


def _same(a: Any, b: Any) -> bool:
    try:
        return bool(a == b) or (isinstance(a, float) and a != a and b != b)
    except (RuntimeError, ValueError):
        return False
