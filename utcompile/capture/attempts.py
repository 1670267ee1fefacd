"""Which recordings are tried: the most dynamic first, then with less that varies, and with opaque modules.

1. All sizes vary, and the last sample is in another dtype on another device.
2. The same in another dtype, and then in the model's own: what a model does by dtype or device stays as recorded.
3. The same with lengths pinned at the example's, where nobody asked for them.
4. Modules that run other operations at another batch are left opaque.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from utcompile.capture.inputs import Inputs
from utcompile.capture.record import record
from utcompile.capture.recorder import Recorder
from utcompile.capture.samples import Sample, plan_samples, with_other_dtype_and_device
from utcompile.capture.unify import Differs, check_isomorphic, unify
from utcompile.capture.unrecordable import Opaque, Unrecordable
from utcompile.errors import UtcError
from utcompile.graph import BATCH, Symbol, origin_of
from utcompile.graph.structure import structural_copy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recorded:
    """A model as one graph.

    Attributes:
        graph: the graph.
        constants: tensors that the model made or kept outside its state, by the name that the graph reads.
        inputs: the inputs, with the sizes that vary.
        opaque: modules that are one node.
        pinned: what could not be made to vary, with the reason.
    """

    graph: fx.Graph
    constants: dict[str, torch.Tensor]
    inputs: Inputs
    opaque: tuple[Opaque, ...]
    pinned: tuple[str, ...]


@dataclass
class _Leaves:
    """The opaque modules found so far, and whether one of them needs real values."""

    found: dict[str, Opaque] = field(default_factory=dict)
    real: bool = False

    @property
    def paths(self) -> frozenset[str]:
        return frozenset(self.found)

    def add(self, path: str, reason: str, source: str) -> None:
        logger.info("%s stays one node: %s", path, reason)
        self.found[path] = Opaque(path, reason, source)


def record_dynamically(model: nn.Module, inputs: Inputs, *, asked: bool, follow: bool) -> Recorded:
    """Record a model so that as much varies as it allows.

    Args:
        asked: the caller named what varies, so nothing may be pinned.
        follow: dropout and batch norm follow the mode.

    Raises:
        UtcError: the model fails, or what must vary cannot.
    """
    lengths = [] if asked else [s for s in inputs.symbols if s != BATCH]
    shorter = inputs.without(lengths)
    leaves = _Leaves()
    pinned: tuple[str, ...] = ()
    attempts = [(inputs, False), *([(shorter, False)] if lengths else []), (shorter, True)]
    for used, by_size in attempts:
        try:
            recorded = _record_as(model, used, leaves, follow=follow, by_size=by_size)
            return replace(recorded, pinned=(*pinned, *recorded.pinned))
        except Differs as difference:
            last = difference
            if used is inputs:
                pinned = tuple(f"{s.name} at {s.example}: {difference.error}" for s in lengths)
    raise last.error


def _record_as(model: nn.Module, inputs: Inputs, leaves: _Leaves, *, follow: bool, by_size: bool) -> Recorded:
    samples = plan_samples(inputs.symbols, follow=follow)
    pinned: dict[str, str] = {}
    for kinds, plan in _plans(samples, model, leaves):
        try:
            graph, constants = _record_all(model, inputs, plan, leaves, by_size=by_size)
        except Differs as difference:
            if plan is samples:
                raise
            pinned |= dict.fromkeys(kinds, str(difference.error))
        else:
            left = tuple(f"{kind}: {reason}" for kind, reason in pinned.items() if kind not in kinds)
            if leaves.real:
                left = ("dtype and device: an opaque module needs values, so the model was recorded as it is",)
            return Recorded(graph, constants, inputs, tuple(leaves.found.values()), left)
    raise AssertionError("the samples themselves are the last plan")


def _plans(samples: list[Sample], model: nn.Module, leaves: _Leaves) -> Iterator[tuple[tuple[str, ...], list[Sample]]]:
    """What varies beside the sizes, and the samples that show it."""
    dtypes = {p.dtype for p in [*model.parameters(), *model.buffers()] if p.is_floating_point()}
    other = torch.float32 if torch.bfloat16 in dtypes else torch.bfloat16
    if not leaves.real:
        yield ("dtype", "device"), with_other_dtype_and_device(samples, other, device=True)
        yield ("dtype",), with_other_dtype_and_device(samples, other, device=False)
        yield ("device",), with_other_dtype_and_device(samples, None, device=True)
    yield (), samples


def _record_all(
    model: nn.Module, inputs: Inputs, samples: list[Sample], leaves: _Leaves, *, by_size: bool
) -> tuple[fx.Graph, dict[str, torch.Tensor]]:
    """Record every sample, leaving opaque what must be, until the recordings are one graph."""
    while True:
        plan = [s for s in samples if not (leaves.real and (s.dtype or s.device))]
        try:
            recordings = _record_alike(model, inputs, plan, leaves, by_size=by_size)
        except Unrecordable as hidden:
            if not hidden.path or (hidden.path in leaves.found and (leaves.real or not hidden.data)):
                raise hidden.error() from hidden
            leaves.add(hidden.path, hidden.reason, hidden.source)
            leaves.real |= hidden.data
            continue
        if recordings is not None:
            return unify(recordings, plan, _sources(inputs)), recordings[0].constants


def _record_alike(
    model: nn.Module, inputs: Inputs, plan: list[Sample], leaves: _Leaves, *, by_size: bool
) -> list[Recorder] | None:
    """One recording a sample; None where a module ran other operations and has become a leaf.

    The first sample and the one in another dtype come first: what differs at all mostly differs there.
    """
    found: dict[int, Recorder] = {}
    for i in sorted(range(len(plan)), key=lambda i: (i > 0, plan[i].dtype is None and plan[i].device is None)):
        sample = plan[i]
        found[i] = _record(model, inputs, sample, leaves)
        if sample.training or (by_size and not sample.dtype and not sample.device):
            varying = _varying(found[0].graph, found[i].graph) - leaves.paths
            if varying and "" not in varying:
                for path in sorted(varying):
                    leaves.add(path, "it runs other operations in other calls", _source_in(path, found.values()))
                return None
        check_isomorphic((found[0].graph, found[i].graph), (plan[0], sample))
    return [found[i] for i in range(len(plan))]


def _record(model: nn.Module, inputs: Inputs, sample: Sample, leaves: _Leaves) -> Recorder:
    try:
        return record(structural_copy(model), inputs, sample, leaves.paths, real=leaves.real)
    except Unrecordable as hidden:
        if sample.dtype or sample.device:
            raise Differs([], hidden.error()) from hidden
        raise
    except UtcError as error:
        examples = {s: s.example for s in inputs.symbols}
        if sample.training or (not examples and not sample.dtype and not sample.device):
            raise
        raise Differs([], _only_as_given(model, inputs, leaves, sample, error)) from error


def _only_as_given(model: nn.Module, inputs: Inputs, leaves: _Leaves, sample: Sample, error: UtcError) -> UtcError:
    """The error for a model that fails at a sample: its own, unless it runs at the sizes it was given."""
    try:
        record(structural_copy(model), inputs.without(inputs.symbols), Sample({}), leaves.paths, real=leaves.real)
    except UtcError as own:
        return own
    except Unrecordable:
        pass
    return UtcError(
        f"the model runs at the example's sizes, and fails at {sample}",
        why=str(error),
        fix="name the dimensions that vary with dynamic=…; dynamic={} captures at the example's sizes only",
    )


def _sources(inputs: Inputs) -> dict[Symbol, tuple[int, int]]:
    found: dict[Symbol, tuple[int, int]] = {}
    for i, dims in enumerate(inputs.varying):
        for dim, symbol in dims.items():
            found.setdefault(symbol, (i, dim))
    return {s: found[s] for s in inputs.symbols}


def _varying(first: fx.Graph, other: fx.Graph) -> set[str]:
    """The modules whose own operations differ between two recordings."""
    one, two = _own_operations(first), _own_operations(other)
    return {path for path in {*one, *two} if one.get(path, []) != two.get(path, [])}


def _own_operations(graph: fx.Graph) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    for node in graph.nodes:
        if node.op not in ("placeholder", "output", "get_attr"):
            found[origin_of(node).path].append((node.op, node.target))
    return found


def _source_in(path: str, recordings: Iterable[Recorder]) -> str:
    origins = (origin_of(n) for r in recordings for n in r.graph.nodes)
    return next((o.source for o in origins if o.path == path), "?")
