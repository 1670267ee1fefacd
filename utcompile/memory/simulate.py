"""A training step on tensors without numbers: how many bytes are alive at each moment, and which work is done."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from utcompile.errors import UtcError
from utcompile.graph import UtcGraphModule, info
from utcompile.graph.nested import map_tensors, tensors
from utcompile.memory.planned import plan_graph
from utcompile.memory.segments import recompute
from utcompile.memory.working import working_memory


@dataclass(frozen=True)
class Moment:
    """A unit in one direction of a step.

    Attributes:
        before: bytes alive when it begins.
        after: when it ends.
        peak: the most in between.
        flops: of products and convolutions in it.
        result: bytes of what it yields, where it ends with one value.
        lead: the most between the unit before it and its beginning.
        freed: bytes that the unit before it yields, where they are freed by its end: it reads them, and keeps them not.
    """

    before: int
    after: int
    peak: int
    flops: int
    result: int = 0
    lead: int = 0
    freed: int = 0


@dataclass(frozen=True)
class Simulated:
    """A step, in bytes beyond parameters, buffers and inputs.

    Attributes:
        kept: alive after the forward pass.
        peak: the most in the step.
        flops: of products and convolutions.
        forward, backward: by unit; the last entry is what follows the last unit.
    """

    kept: int
    peak: int
    flops: int
    forward: tuple[Moment, ...] = ()
    backward: Mapping[int, Moment] = field(default_factory=dict)

    def with_aside(self, count: int) -> Simulated:
        """The same with more bytes that are alive from forward to backward."""
        return replace(self, kept=self.kept + count, peak=self.peak + count)


RANDOM_STATE = torch.get_rng_state().nbytes  # of the CPU, which a checkpoint keeps to draw the same numbers again


class _Ledger(TorchDispatchMode):
    """Counts the bytes of every storage that an operation makes, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.highest = self.flops = 0
        self.known: set[int] = set()

    def ignore(self, given: Sequence[torch.Tensor]) -> None:
        """Tensors that were there before."""
        for t in given:
            self._note(t, 0)

    def _note(self, t: torch.Tensor, count: int) -> None:
        storage = t.untyped_storage()
        key = storage._cdata
        if key in self.known:
            return
        self.known.add(key)
        size = storage.nbytes() * count
        self.alive += size
        self.highest = max(self.highest, self.alive)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size

    def since(self) -> int:
        """The most since this was asked last."""
        found, self.highest = self.highest, self.alive
        return found

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        before = self.alive
        result = func(*args, **(kwargs or {}))
        self.highest = max(self.highest, before + working_memory(func, args, kwargs or {}))
        counted = flop_registry.get(func._overloadpacket)
        if counted is not None:
            self.flops += counted(*args, **(kwargs or {}), out_val=result)
        for t in tensors(result):
            self._note(t, 1)
        return result


def simulate(
    tuned: UtcGraphModule,
    arguments: Mapping[str, object],
    units: Sequence[tuple[str, str]] = (),
    again: Sequence[tuple[str, str]] = (),
    *,
    as_it_is: bool = False,
) -> Simulated:
    """A step of a tuned module on fake tensors.

    Args:
        tuned: the module; nothing is computed with its numbers.
        arguments: its inputs by name.
        units: the names of the first and last nodes of units, in order; each becomes a `Moment`.
        again: the units that run again in backward.
        as_it_is: nothing is planned.

    Raises:
        UtcError: the inputs are refused by a guard or do not run, or which operations run depends on numbers.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        given = map_tensors(mode.from_tensor, dict(arguments))
        graph = tuned.graph
        if not as_it_is:
            graph, _, _ = plan_graph(tuned.graph, tuned, tuned.follows_mode)
            recompute(graph, tuned, again)
        try:
            there = [mode.from_tensor(t) for t in (*tuned.parameters(), *tuned.buffers())]
            with _statistics_apart(tuned, mode), _silent():
                return _run(tuned, graph, given, units, there).with_aside(len(again) * RANDOM_STATE)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise UtcError(
                "the memory of this model cannot be planned",
                why=f"what it computes depends on the numbers in a tensor: {error}",
                fix="leave out `memory=`; what costs little time is applied anyway",
                code="memory/inputs",
            ) from error
        except RuntimeError as error:  # torch's own, of inputs that a layer does not take
            raise UtcError(
                "the model does not run on the example inputs",
                why=str(error).partition("\n")[0],
                fix="pass inputs that the module can be called with",
                code="memory/inputs",
            ) from error


def _run(
    tuned: UtcGraphModule,
    graph: fx.Graph,
    given: Mapping[str, object],
    units: Sequence[tuple[str, str]],
    there: Sequence[torch.Tensor],
) -> Simulated:
    trained = [p for p in tuned.parameters() if p.requires_grad]
    if not trained:
        raise UtcError(
            "a step of this module keeps nothing",
            why="none of its parameters trains",
            fix="plan it with its tuners and its head trainable, as `utc.compile` returns it",
            code="memory/inputs",
        )
    ledger = _Ledger()
    ledger.ignore([*there, *tensors(given)])
    with ledger, torch.enable_grad():
        run = _Marked(tuned, graph, ledger, units)
        result = run.run(*_in_order(graph, given))  # alive to the end of the step, as in a loop that names it
        loss = _total(result)
        run.end_forward()
        kept = ledger.alive
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        run.end_backward()
        peak = max(run.peaks)
    del gradients, loss, result
    return Simulated(kept, peak, ledger.flops, tuple(run.forward), run.backward)


@contextmanager
def _statistics_apart(tuned: UtcGraphModule, mode: FakeTensorMode) -> Iterator[None]:
    """Give the module fakes of the buffers that a step writes, so that no step is counted in them."""
    buffers = {id(t): mode.from_tensor(t) for t in tuned.buffers()}
    owned = [(layer._buffers, dict(layer._buffers)) for layer in tuned.modules() if layer._buffers]
    for present, before in owned:
        present.update({n: None if t is None else buffers[id(t)] for n, t in before.items()})
    try:
        yield
    finally:
        for present, before in owned:
            present.update(before)


@contextmanager
def _silent() -> Iterator[None]:
    """torch prints a stack of what does not run on fake tensors; the error that is raised says it."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _in_order(graph: fx.Graph, given: Mapping[str, object]) -> list[object]:
    names = [(str(n.target), n.args) for n in graph.nodes if n.op == "placeholder"]
    return [given[name] if name in given else (default[0] if default else None) for name, default in names]


def _total(result: object) -> torch.Tensor:
    floats = [t for t in tensors(result) if t.is_floating_point() and t.requires_grad]
    return torch.stack([t.sum(dtype=torch.float32) for t in floats]).sum()


@dataclass(frozen=True)
class _Result:
    """What a unit yields: its bytes, and its memory as long as that is alive."""

    size: int = 0
    storage: weakref.ref[torch.UntypedStorage] | None = None

    @classmethod
    def of(cls, value: object) -> _Result:
        """That of a value; nothing, where it is no tensor."""
        return cls(value.nbytes, weakref.ref(value.untyped_storage())) if isinstance(value, torch.Tensor) else cls()

    def freed(self) -> int:
        """Its bytes, if they are freed."""
        return self.size if self.storage is not None and self.storage() is None else 0


class _Marked(fx.Interpreter):
    """Runs a graph and notes, at the end of each unit, what is alive; in backward likewise."""

    def __init__(self, module: nn.Module, graph: fx.Graph, ledger: _Ledger, units: Sequence[tuple[str, str]]) -> None:
        super().__init__(module, garbage_collect_values=True, graph=graph)
        self.ledger, self.firsts = ledger, {first for first, _ in units}
        self.lasts = {last: i for i, (_, last) in enumerate(units)}
        self.forward: list[Moment] = []
        self.backward: dict[int, Moment] = {}
        self.peaks: list[int] = []
        self.ended: _Result | None = None  # of the unit whose last node has just run
        self.given = _Result()  # of the unit before it
        self._begin()

    def _begin(self) -> None:
        self.start, self.work = self.ledger.alive, self.ledger.flops
        self.lead = self.ledger.since()

    def _moment(self, result: int = 0) -> Moment:
        peak = self.ledger.since()
        self.peaks += [self.lead, peak]
        work, freed = self.ledger.flops - self.work, self.given.freed()
        found = Moment(self.start, self.ledger.alive, peak, work, result, self.lead, freed)
        self._begin()
        return found

    def _end_unit(self) -> None:
        """Note a unit that has ended: when its last node has run, and what only that node read is freed."""
        if self.ended is not None:
            self.forward.append(self._moment(self.ended.size))
            self.given, self.ended = self.ended, None

    def run_node(self, n: fx.Node) -> object:
        self._end_unit()
        if n.name in self.firsts:  # what came before it is of no unit
            self._begin()
        if info(n).check:
            with suppress(DataDependentOutputException):  # a guard on values, which are not there
                super().run_node(n)
            return None
        result = super().run_node(n)
        if (unit := self.lasts.get(n.name)) is not None:
            self.ended = _Result.of(result)
            if isinstance(result, torch.Tensor) and result.requires_grad:
                result.register_hook(lambda grad: self._enter(unit))
        return result

    def end_forward(self) -> None:
        self._end_unit()
        self.forward.append(self._moment())
        self.unit = len(self.lasts)

    def _enter(self, unit: int) -> None:
        """The gradient of a unit's result is there: backward leaves the next one and enters this one."""
        self.backward[self.unit] = self._moment()
        self.unit = unit

    def end_backward(self) -> None:
        self.backward[self.unit] = self._moment()
