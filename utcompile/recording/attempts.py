"""The order in which recordings are tried: the most dynamic first, then with fewer varying sizes and opaque modules.

1. All sizes vary, and the last sample is in another dtype on another device.
2. The same in another dtype, and then in the model's own: choices by dtype or device stay as recorded.
3. The same at sizes at which the model decides as at the example's (`sizes_alike`), where it has thresholds.
4. The same with lengths pinned at the example's, where the caller does not name them.
5. Modules that run other operations at another batch are left opaque.
6. Nothing varies, where the caller does not name it.
"""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import fx, nn

from utcompile.errors import UtcError
from utcompile.graph import BATCH, Symbol, collector_paused, origin_of
from utcompile.graph.structure import has_own_attributes, structural_copy
from utcompile.graph.values_kept import values_kept
from utcompile.recording.active import exclusive
from utcompile.recording.alike import sizes_alike
from utcompile.recording.guards import Guard
from utcompile.recording.inputs import Inputs
from utcompile.recording.record import home_of, record
from utcompile.recording.recorder import Recorder
from utcompile.recording.samples import (
    Sample,
    other_device,
    plan_samples,
    with_other_dtype_and_device,
    with_other_values,
)
from utcompile.recording.survivors import release
from utcompile.recording.unify import Differs, check_isomorphic, unify
from utcompile.recording.unrecordable import Opaque, Unrecordable
from utcompile.recording.untouched import random_numbers_kept
from utcompile.recording.watch import Watch

logger = logging.getLogger(__name__)
_CHOICES = 3  # of sizes at which a model is recorded, before less of it varies


@dataclass(frozen=True)
class Recorded:
    """A model as one graph.

    Attributes:
        graph: the graph.
        constants: tensors that the model made or kept outside its state, by the name that the graph reads.
        inputs: the inputs, with the sizes that vary.
        opaque: modules that are one node.
        pinned: sizes, dtypes and devices that could not be made to vary, with the reason.
        fixed: inputs whose values are part of the graph.
        nodes: the node of each input tensor, in order.
        guards: the decisions of the model's Python code, which every call must repeat.
        notes: calls that ran and are no part of the graph, with the consequence.
    """

    graph: fx.Graph
    constants: dict[str, torch.Tensor]
    inputs: Inputs
    opaque: tuple[Opaque, ...]
    pinned: tuple[str, ...]
    fixed: tuple[str, ...] = ()
    nodes: tuple[fx.Node, ...] = ()
    guards: tuple[Guard, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class _Leaves:
    """The parts of a model that cannot be recorded as they are, as far as they were found.

    Attributes:
        found: the opaque modules.
        real: why the values must be real; empty where they need not be.
        fixed: inputs whose values Python reads as sizes, with the line.
        recordings: those that no graph has used up yet, by what makes them differ: attempts have samples in common.
        wide: modules that contain most of the parameters: as one node they would leave nothing to tune.
        watch: collects the Python state that recordings leave behind.
        last: the latest recording at the example's lengths, and its sizes.
    """

    wide: frozenset[str]
    watch: Watch
    found: dict[str, Opaque] = field(default_factory=dict)
    real: str = ""
    fixed: dict[str, str] = field(default_factory=dict)
    last: tuple[Recorder, Mapping[Symbol, int]] | None = None
    recordings: dict[object, Recorder] = field(default_factory=dict)

    @property
    def paths(self) -> frozenset[str]:
        return frozenset(self.found)

    def add(self, path: str, reason: str, source: str) -> None:
        logger.info("%s stays one node: %s", path, reason)
        self.found[path] = Opaque(path, reason, source)

    def use_up(self, recordings: list[Recorder]) -> None:
        """Forget recordings: their graphs change when they become one."""
        used = set(map(id, recordings))
        self.recordings = {key: r for key, r in self.recordings.items() if id(r) not in used}


def record_dynamically(model: nn.Module, inputs: Inputs, watch: Watch, *, asked: bool, follow: bool) -> Recorded:
    """Record a model with as many varying sizes as it allows.

    Args:
        watch: collects the Python state that recordings leave behind.
        asked: the caller named what varies, so nothing may be pinned.
        follow: dropout and batch norm follow the mode.

    Raises:
        UtcError: the model fails, or what must vary cannot.
    """
    lengths = [] if asked else [s for s in inputs.symbols if s != BATCH]
    shorter, still = inputs.without(lengths), inputs.without(inputs.symbols)
    leaves = _leaves_of(model, watch)
    pinned: dict[Symbol, str] = {}
    # sizes that vary, whether modules are opaque that run other operations at another, choices of sizes
    attempts = [(inputs, False, _CHOICES), *([(shorter, False, 2)] if lengths else []), (shorter, True, 1)]
    if lengths and BATCH in inputs.symbols:
        attempts.append((inputs.without([BATCH]), False, 2))
    for used, by_size, choices in [*attempts, *([] if asked or not inputs.symbols else [(still, False, 1)])]:
        try:
            recorded = _record_at_some(model, used, leaves, follow=follow, by_size=by_size, choices=choices)
        except Differs as difference:
            last = difference
            left = set(used.symbols) if used is not inputs or not lengths else set(lengths)
            pinned |= {s: f"{s.name}: {difference.error.brief()}" for s in left if s not in pinned}
        else:
            fixed = [pinned[s] for s in inputs.symbols if s not in used.symbols]
            return replace(recorded, pinned=(*fixed, *recorded.pinned))
    raise last.error


def _record_at_some(
    model: nn.Module, inputs: Inputs, leaves: _Leaves, *, follow: bool, by_size: bool, choices: int
) -> Recorded:
    """Record at sizes far apart; then, up to `choices` times, at sizes that earlier recordings' questions allow."""
    tried: list[Mapping[Symbol, Sequence[int]] | None] = [None]
    while True:
        try:
            return _record_as(model, inputs, leaves, follow=follow, by_size=by_size, chosen=tried[-1])
        except Differs:
            if len(tried) == choices or leaves.last is None:
                raise
            chosen = sizes_alike(*leaves.last, inputs.example, _sources(inputs), upwards=len(tried) == 1)
            if chosen in tried:
                raise
            tried.append(chosen)


def _leaves_of(model: nn.Module, watch: Watch) -> _Leaves:
    """The parts that need not be recorded to know it: layers whose weight no fake tensor can stand for."""
    leaves = _Leaves(_wide(model), watch)
    for path, module in model.named_modules():
        for name, tensor in {**module._parameters, **module._buffers}.items():
            if tensor is not None and has_own_attributes(tensor):
                reason = f"its {name} is a {type(tensor).__name__}, which this layer alone can read"
                leaves.add(path, reason, _defined_at(type(module)))
                leaves.real = f"{path or 'the model'} needs them"
    return leaves


def _defined_at(cls: type) -> str:
    return f"{cls.__module__.rpartition('.')[2]}.py in {cls.__qualname__}"


def _wide(model: nn.Module) -> frozenset[str]:
    sizes = {name: sum(p.numel() for p in m.parameters()) for name, m in model.named_modules()}
    return frozenset(["", *(name for name, n in sizes.items() if 2 * n > sizes[""])])


def _record_as(
    model: nn.Module,
    inputs: Inputs,
    leaves: _Leaves,
    *,
    follow: bool,
    by_size: bool,
    chosen: Mapping[Symbol, Sequence[int]] | None,
) -> Recorded:
    samples = plan_samples(inputs.symbols, follow=follow, chosen=chosen)
    pinned: dict[str, str] = {}
    by_sizes = False
    for kinds, plan in _plans(samples, model, inputs, leaves):
        if by_sizes and plan is not samples:
            continue
        try:
            first, graph, guards = _record_all(model, inputs, plan, leaves, by_size=by_size)
        except Differs as difference:
            if plan is samples or leaves.real:
                raise
            pinned |= dict.fromkeys(kinds, difference.error.brief())
            by_sizes = by_sizes or (not by_size and _differ_by_sizes(model, inputs, samples, leaves))
        else:
            left = tuple(f"{kind}: {reason}" for kind, reason in pinned.items() if kind not in kinds)
            if leaves.real:
                left = (f"dtype and device: the model was recorded with its values, because {leaves.real}",)
            left += tuple(f"{name}: its values, which Python reads ({line})" for name, line in leaves.fixed.items())
            left += tuple(f"the choice at {c}: as with the example; another is an error" for c in first.values.choices)
            used, opaque = inputs.fixing(leaves.fixed), tuple(leaves.found.values())
            return Recorded(
                graph, first.constants, used, opaque, left, tuple(leaves.fixed), tuple(first.inputs), guards,
                tuple(first.notes),
            )  # fmt: skip
    raise AssertionError("the samples themselves are the last plan")


def _differ_by_sizes(model: nn.Module, inputs: Inputs, samples: list[Sample], leaves: _Leaves) -> bool:
    """Whether recordings in the model's own dtype and device differ by size too: then no other plan is tried."""
    ends = [samples[0], [s for s in samples if not s.training][-1]]
    try:
        first, last = (_record(model, inputs, sample, leaves) for sample in ends)
        check_isomorphic((first.graph, last.graph), ends)
    except Differs:
        return True
    except (UtcError, Unrecordable, _NeedsValues):
        pass
    return False


def _plans(
    samples: list[Sample], model: nn.Module, inputs: Inputs, leaves: _Leaves
) -> Iterator[tuple[tuple[str, ...], list[Sample]]]:
    """The kinds of things that vary in addition to the sizes, with the samples that show them."""
    dtypes = {p.dtype for p in [*model.parameters(), *model.buffers()] if p.is_floating_point()}
    other = torch.float32 if torch.bfloat16 in dtypes else torch.bfloat16
    elsewhere = other_device(home_of(model, inputs))
    if not leaves.real:
        yield ("dtype", "device"), with_other_dtype_and_device(samples, other, elsewhere)
        yield ("dtype",), with_other_dtype_and_device(samples, other, None)
        yield ("device",), with_other_dtype_and_device(samples, None, elsewhere)
    yield (), samples


def _record_all(
    model: nn.Module, inputs: Inputs, samples: list[Sample], leaves: _Leaves, *, by_size: bool
) -> tuple[Recorder, fx.Graph, tuple[Guard, ...]]:
    """Record every sample, with more modules left opaque each time, until the recordings are one graph."""
    varied = True
    while True:
        plan = with_other_values(samples, again=2 if varied else 0) if leaves.real else samples
        try:
            recordings = _record_alike(model, inputs, plan, leaves, by_size=by_size)
            if recordings is not None:
                leaves.use_up(recordings)
                with collector_paused():
                    used = inputs.fixing(leaves.fixed)
                    probe = partial(_probe, model, inputs, leaves)
                    return recordings[0], *unify(recordings, plan, _sources(used), used.example, probe)
        except Differs:
            if not (leaves.real and varied):
                raise
            varied = False  # its choices depend on the values, and are checked
        except Unrecordable as hidden:
            _give_way(leaves, hidden)
        except _NeedsValues as failed:
            leaves.real = f"its forward does not run on fake tensors ({failed})"


def _probe(
    model: nn.Module, inputs: Inputs, leaves: _Leaves, sizes: Mapping[Symbol, int], *, gradients: bool
) -> Recorder | None:
    """One more recording; None where the model does not run at these sizes."""
    try:
        with torch.set_grad_enabled(gradients):
            return _record_once(model, inputs, Sample(sizes), leaves)
    except (UtcError, Unrecordable, _NeedsValues):
        return None


def _give_way(leaves: _Leaves, hidden: Unrecordable) -> None:
    """Find a way around a call that cannot be recorded: real values, an input whose values are fixed, an opaque module.

    Raises:
        UtcError: there is none.
    """
    if hidden.shape and not leaves.real:
        leaves.real = f"{hidden.reason} ({hidden.source})"
    elif hidden.holders and not set(hidden.holders) <= set(leaves.fixed):
        leaves.fixed |= dict.fromkeys(hidden.holders, hidden.source)
        leaves.real = leaves.real or f"Python reads sizes from {', '.join(hidden.holders)} ({hidden.source})"
    elif hidden.data and hidden.path in leaves.wide and not leaves.real:
        leaves.real = f"Python chooses by values ({hidden.source})"
    elif hidden.path and (hidden.path not in leaves.found or (hidden.data and not leaves.real)):
        leaves.add(hidden.path, hidden.reason, hidden.source)
        if hidden.data:
            leaves.real = leaves.real or f"{hidden.path} needs them"
    else:
        raise hidden.error() from hidden


def _record_alike(
    model: nn.Module, inputs: Inputs, plan: list[Sample], leaves: _Leaves, *, by_size: bool
) -> list[Recorder] | None:
    """One recording per sample; None where a module ran other operations and has become a leaf.

    The first sample and the one in another dtype come first: most differences show there.
    """
    found: dict[int, Recorder] = {}
    for i in sorted(range(len(plan)), key=lambda i: (i > 0, plan[i].dtype is None and plan[i].device is None)):
        sample = plan[i]
        found[i] = _record(model, inputs, sample, leaves)
        if i == 0:
            leaves.last = found[0], sample.sizes
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
        return _record_once(model, inputs, sample, leaves)
    except Unrecordable as hidden:
        if sample.dtype or sample.device:
            raise Differs(hidden.error()) from hidden
        raise
    except UtcError as error:
        if sample.dtype or sample.device:
            raise Differs(error) from error
        if sample.training or not inputs.symbols:
            raise
        _check_as_given(model, inputs, leaves)
        why = f"the model runs at the example's sizes, and fails at {sample}"
        fix = "name the dimensions that vary with dynamic=…; dynamic={} captures at the example's sizes only"
        raise Differs(UtcError(why, why=str(error), fix=fix, code="capture/forward-failed")) from error


def _check_as_given(model: nn.Module, inputs: Inputs, leaves: _Leaves) -> None:
    """Raise the model's own error where it fails at the sizes of the example.

    Raises:
        UtcError: it does.
    """
    with contextlib.suppress(Unrecordable, _NeedsValues):
        _record_once(model, inputs.without(inputs.symbols), Sample({}), leaves)


def _record_once(model: nn.Module, inputs: Inputs, sample: Sample, leaves: _Leaves) -> Recorder:
    """One recording; a call without values that was recorded already is not recorded again."""
    fixing = inputs.fixing(leaves.fixed)
    if leaves.real:
        return _record_new(model, fixing, sample, leaves)
    call = fixing.shapes_at(sample.sizes), sample.dtype, sample.device, sample.training, torch.is_grad_enabled()
    key = call, leaves.paths, *leaves.fixed
    if key not in leaves.recordings:
        leaves.recordings[key] = _record_new(model, fixing, sample, leaves)
    return leaves.recordings[key]


def _record_new(model: nn.Module, inputs: Inputs, sample: Sample, leaves: _Leaves) -> Recorder:
    real, fixed = bool(leaves.real), frozenset(leaves.fixed)
    try:
        # values must be freed when nothing needs them; fakes weigh nothing
        with contextlib.nullcontext() if real else collector_paused():
            return record(
                structural_copy(model),
                inputs,
                sample,
                leaves.paths,
                real=real,
                fixed=fixed,
                wide=leaves.wide,
                watch=leaves.watch,
            )
    except UtcError as error:
        if real or sample.dtype or sample.device or not _runs(model, inputs, sample, leaves.watch):
            raise
        raise _NeedsValues(error.why or str(error)) from error
    finally:
        with exclusive():  # the numbers that live are those of every thread
            release()


class _NeedsValues(Exception):
    """A forward that fails on fake tensors and runs on real ones."""


def _runs(model: nn.Module, inputs: Inputs, sample: Sample, watch: Watch) -> bool:
    """Whether the model's forward runs on real values at a sample."""
    try:
        with torch.no_grad(), random_numbers_kept(model), values_kept(model):
            args, kwargs = inputs.as_given(inputs.at(sample.sizes, torch.clone))
            structural_copy(model).train(sample.training)(*args, **kwargs)
    except Exception:  # whatever a model's forward raises
        return False
    finally:
        watch.around.put_back()
    return True


def _sources(inputs: Inputs) -> dict[Symbol, tuple[int, int]]:
    found: dict[Symbol, tuple[int, int]] = {}
    for i, dims in enumerate(inputs.varying):
        for dim, symbol in dims.items():
            found.setdefault(symbol, (i, dim))
    return {s: found[s] for s in inputs.symbols if s in found}


def _varying(first: fx.Graph, other: fx.Graph) -> set[str]:
    """The modules whose own operations differ between two recordings."""
    one, two = _own_operations(first), _own_operations(other)
    return {path for path in {*one, *two} if one.get(path, []) != two.get(path, [])}


def _own_operations(graph: fx.Graph) -> dict[str, list[object]]:
    found: dict[str, list[object]] = defaultdict(list)
    for node in graph.nodes:
        if node.op not in ("placeholder", "output", "get_attr"):
            found[origin_of(node).path].append((node.op, node.target))
    return found


def _source_in(path: str, recordings: Iterable[Recorder]) -> str:
    origins = (origin_of(n) for r in recordings for n in r.graph.nodes)
    return next((o.source for o in origins if o.path == path), "?")
