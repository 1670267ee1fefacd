"""Several recordings become one graph in which the differences between them are computed.

The recordings must be isomorphic. A value that differs between them is one of these, or an error that names it:
1. a number that every recording computed in the same way from sizes that Python read (`SizeNodes`);
2. a dtype, a device or a limit of a dtype (`torch.finfo(x.dtype).min`), that some tensor of the graph has too;
3. a choice that the model made by its mode.
The decisions of the Python code on the way are checked in every call (`insert_guards`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import fx
from torch.fx.node import Argument

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
    """Make the first recording's graph the one graph; returns it with the guards of every call.

    Args:
        recordings: one per sample.
        samples: the sizes and modes at which they were recorded.
        sources: where each symbol is read: number of the input tensor, and dimension.
        example: the sizes of the example inputs.
        probe: makes one more recording, at sizes that the guards would refuse.

    Raises:
        Differs: they are not one graph, or a guard excludes the example's sizes.
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
    """The ways to run a graph, with those that recordings at a size of 1 add where a guard would refuse it."""
    ways = conditions.ways()
    failed = False
    for symbols in [[symbol] for symbol in sizes] + ([list(sizes)] if len(sizes) > 1 else []):
        alone = {**sizes, **dict.fromkeys(symbols, 1)}
        if (failed and len(symbols) > 1) or conditions.refused(ways, alone, guess=True) is None:
            continue
        recording = probe(alone, gradients=torch.is_grad_enabled())
        varying = [s for s in sizes if s not in symbols]
        way = None if recording is None else conditions.way_of(recording, alone, varying)
        failed |= way is None
        ways = ways if way is None else conditions.ways(way)
    return ways


def _check_grad_mode(sizes: SizeNodes, at: Mapping[Symbol, int], probe: Probe) -> None:
    """A graph is trained with gradients and used without, so no choice of the model may depend on that."""
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
    """Check that recordings have the same operations, wired alike.

    Raises:
        Differs: they do not.
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


@dataclass(frozen=True)
class _Attribute:
    """An attribute of tensors, such as `dtype`, with its value at every sample."""

    name: str
    values: tuple[object, ...]


@dataclass(frozen=True)
class _Limit:
    """A limit of the dtypes of every sample, such as `torch.finfo(dtype).min`, times a factor."""

    dtypes: tuple[torch.dtype, ...]
    name: str
    factor: float = 1


class _Merger:
    """Turns differences between recordings into nodes that compute them."""

    def __init__(self, sizes: SizeNodes, samples: Sequence[Sample]) -> None:
        self.sizes, self.graph, self.samples = sizes, sizes.graph, samples
        self.known: dict[_Attribute | _Limit, fx.Node] = {}
        # dtypes and devices, one per sample -> a node that has them
        self.dtypes: dict[tuple[torch.dtype, ...], fx.Node] = {}
        self.devices: dict[tuple[torch.device, ...], fx.Node] = {}

    def merge(self, rows: list[tuple[fx.Node, ...]]) -> fx.Graph:
        """Merge the rows, in graph order."""
        for row in rows:
            node = row[0]
            for field in ("args", "kwargs"):
                setattr(node, field, self._value([getattr(n, field) for n in row], row))
            seen = [s for n in row if isinstance(s := info(n).seen, Seen)]
            for n in row:
                del info(n).seen
            if seen:
                self._describe(node, seen)
        return self.graph

    def _describe(self, node: fx.Node, seen: list[Seen]) -> None:
        if len({len(s.shape) for s in seen}) > 1:
            raise Differs(_error("a tensor has another rank in another call", node, ""))
        self.sizes.describe(node, seen)
        self.dtypes.setdefault(tuple(s.dtype for s in seen), node)
        self.devices.setdefault(tuple(s.device for s in seen), node)

    # --- differences --------------------------------------------------------------------------------------------

    def _value(self, values: list[object], row: tuple[fx.Node, ...]) -> object:
        first = values[0]
        if isinstance(first, fx.Node):
            return first
        if any(isinstance(v, (Sized, SizedFloat)) for v in values):
            found = self.sizes.number(values, row[0])
            if found is None:
                found = self._mode([_plain(v) for v in values])
            if found is None:
                raise self._differ(values, row)
            return found
        if isinstance(first, (tuple, list)):
            alike = [v for v in values if isinstance(v, (tuple, list)) and type(v) is type(first)]
            if len(alike) == len(values):
                if len(set(map(len, alike))) > 1:
                    raise self._differ(values, row)
                parts = [self._value(list(v), row) for v in zip(*alike, strict=True)]
                return parts if isinstance(first, list) else tuple(parts)
        if isinstance(first, dict):
            same = [v for v in values if isinstance(v, dict) and v.keys() == first.keys()]
            if len(same) == len(values):
                return {k: self._value([v[k] for v in same], row) for k in first}
        if isinstance(first, slice) and all(isinstance(v, slice) for v in values):
            return slice(*(self._value([getattr(v, f) for v in values], row) for f in ("start", "stop", "step")))
        if all(type(v) is type(first) and (v is first or _same(v, first)) for v in values[1:]):
            return first
        for derive in (self._type, self._limit, self._mode):
            found = derive(values)
            if found is not None:
                return found
        raise self._differ(values, row)

    def _differ(self, values: list[object], row: tuple[fx.Node, ...]) -> Differs:
        shown = "; ".join(f"at {s}: {v!r}"[:90] for s, v in zip(self.samples, values, strict=True))
        return Differs(
            _error("an argument differs between calls and no size, dtype or mode explains it", row[0], shown)
        )

    def _type(self, values: list[object]) -> fx.Node | None:
        """A dtype or device that a tensor has; the type of a device by name."""
        if isinstance(values[0], str):
            devices = next((found for found in self.devices if [d.type for d in found] == values), None)
            if devices is None:
                return None
            return self._attribute("type", values, self._attribute("device", devices, self.devices[devices]))
        dtypes = tuple(v for v in values if isinstance(v, torch.dtype))
        if dtypes in self.dtypes and len(dtypes) == len(values):
            return self._attribute("dtype", dtypes, self.dtypes[dtypes])
        devices = tuple(v for v in values if isinstance(v, torch.device))
        if devices in self.devices and len(devices) == len(values):
            return self._attribute("device", devices, self.devices[devices])
        return None

    def _attribute(self, name: str, values: Iterable[object], source: fx.Node) -> fx.Node:
        return self._scalar(_Attribute(name, tuple(values)), getattr, source, name)

    def _limit(self, values: list[object]) -> fx.Node | None:
        """`torch.finfo(x.dtype).min`."""
        numbers = [v for v in values if isinstance(v, float)]
        if len(numbers) < len(values):
            return None
        for dtypes, source in list(self.dtypes.items()):
            if not all(d.is_floating_point for d in dtypes):
                continue
            dtype = self._attribute("dtype", dtypes, source)
            for limit in _LIMITS:
                limits = [getattr(torch.finfo(d), limit) for d in dtypes]
                factor = numbers[0] / limits[0]
                if all(n * factor == v for n, v in zip(limits, numbers, strict=True)):
                    found = self._scalar(_Limit(dtypes, limit), finfo, dtype, limit)
                    scaled = _Limit(dtypes, limit, factor)
                    return found if factor == 1 else self._scalar(scaled, operator.mul, found, factor)
        return None

    def _scalar(
        self, key: _Attribute | _Limit, function: Callable[..., object], source: fx.Node, operand: Argument
    ) -> fx.Node:
        """A node that computes something from another, made once per key."""
        if key not in self.known:
            with self.graph.inserting_after(source):
                made = self.known[key] = self.graph.call_function(function, (source, operand))
            info(made).derived = True
        return self.known[key]

    def _mode(self, values: list[object]) -> fx.Node | None:
        """A value that depends on the mode alone: one in training and one in eval."""
        pairs = [(s.training, v) for s, v in zip(self.samples, values, strict=True)]
        chosen = {mode: v for mode, v in pairs if isinstance(v, (bool, int, float, str, type(None)))}
        if len(chosen) < 2 or not all(type(v) is type(chosen[mode]) and _same(v, chosen[mode]) for mode, v in pairs):
            return None
        training = self.sizes.early("training", lambda: self.graph.get_attr("training"))
        info(training).state, info(training).derived = False, True
        if chosen[True] is True and chosen[False] is False:
            return training
        choice = (training, chosen[True], chosen[False])
        made = self.sizes.early(("mode", repr(choice)), lambda: self.graph.call_function(by_mode, choice))
        info(made).derived = True
        return made


def _plain(value: object) -> object:
    return int(value) if isinstance(value, Sized) else float(value) if isinstance(value, SizedFloat) else value


def _same(a: object, b: object) -> bool:
    try:
        return bool(a == b) or (isinstance(a, float) and a != a and b != b)
    except (RuntimeError, ValueError):
        return False
