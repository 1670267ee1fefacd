"""`MemoryPlan`: how a tuned module keeps less for backward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from numbers import Real

import torch
from torch import nn

from utcompile.errors import UtcError
from utcompile.graph import UtcGraphModule
from utcompile.graph.nested import tensors
from utcompile.memory.choose import Model
from utcompile.memory.execution import planned_forward
from utcompile.memory.marked import marked_forward
from utcompile.memory.segments import nodes_of_unit
from utcompile.memory.simulate import Simulated, simulate
from utcompile.memory.sizes import read_budget, shown, shown_up
from utcompile.memory.units import Unit, units_of

_TRIES = 6  # simulations until a plan's own step fits
_LOWER = 0.99  # of a peak: what is tried next, for the least possible
_POINTS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # of the curve


@dataclass(frozen=True)
class Point:
    """One plan on the curve of work over memory: bytes beyond parameters, buffers and inputs."""

    kept: int
    peak: int
    flops: int
    units: int


@dataclass(frozen=True)
class MemoryPlan:
    """What a tuned module keeps for backward. The default keeps less wherever that costs little time.

    Attributes:
        again: the units that run again in backward: the names of their first and last nodes.
        units: every unit of the model: its path, the bytes it keeps, the FLOPs of its forward, and whether it runs
            again.
        before: the step without any plan; None where no budget was given.
        expected: the step with this plan, simulated.
        curve: less and less memory for more and more work, down to the least that is possible.
        others: bytes of parameters, buffers and inputs.
    """

    again: tuple[tuple[str, str], ...] = ()
    units: tuple[tuple[str, int, int, bool], ...] = ()
    before: Point | None = None
    expected: Point | None = None
    curve: tuple[Point, ...] = ()
    others: int = 0

    def forward_of(self, tuned: UtcGraphModule) -> Callable[..., object] | None:
        """What a call of a tuned module runs now; None where it runs as it is."""
        return planned_forward(tuned, self.again)

    def compiled_forward_of(self, tuned: UtcGraphModule) -> Callable[..., object] | None:
        """What `torch.compile` compiles of a tuned module; None where it compiles it as it is."""
        return marked_forward(tuned, self.again)

    def of_part(self, tuned: UtcGraphModule, part: UtcGraphModule) -> MemoryPlan:
        """The plan of a part of a tuned module, whose nodes have the names that they have in the whole."""
        own = {n.name for n in part.graph.nodes if n.op not in ("placeholder", "output")}
        units = [nodes_of_unit(tuned.graph, first, last) for first, last in self.again]
        inside = [[n.name for n in unit if n.name in own] for unit in units]
        return MemoryPlan(tuple((names[0], names[-1]) for names in inside if names))

    def within(self, tuned: UtcGraphModule, budget: float | int | str, example_inputs: object = None) -> MemoryPlan:
        """A plan whose step fits a budget, for the least work; see `TunedModule.plan_memory`."""
        amount = read_budget(budget)
        found = _Survey.of(tuned, _arguments(tuned, example_inputs))
        limit = int(amount * found.before.peak) if isinstance(amount, float) else amount - found.others
        chosen, step = _fitting(found, limit) or _least(found)
        if step.peak > limit:
            raise _too_small(found, step.peak, budget, is_share=isinstance(amount, float))
        return found.plan(chosen, step)

    def surveyed(self, tuned: UtcGraphModule, example_inputs: object = None) -> MemoryPlan:
        """The plan without a budget, with what its step takes and the curve of what is possible."""
        found = _Survey.of(tuned, _arguments(tuned, example_inputs))
        return found.plan(frozenset(), found.step)

    def to_dict(self) -> dict[str, object]:
        """The plan as plain data, in bytes and FLOPs."""
        units = [{"path": p, "kept": k, "flops": f, "runs_again": again} for p, k, f, again in self.units]
        return {
            "before": self.before and asdict(self.before),
            "expected": self.expected and asdict(self.expected),
            "curve": [asdict(point) for point in self.curve],
            "units": units,
            "others": self.others,
        }

    def __str__(self) -> str:
        if self.expected is None or self.before is None:
            ways = "values made again from what is kept anyway, masks of bits, small indices"
            return f"memory: what costs little time ({ways})"
        rows = [
            f"{'runs again' if again else 'kept':10}  {shown(k):>9}  {f / 1e9:8.2f} GFLOPs  {path}"
            for path, k, f, again in self.units
        ]
        lines = ["a step           kept       peak        GFLOPs  units that run again"]
        for name, point in (("without a plan", self.before), ("this plan", self.expected)):
            lines.append(_line(name, point))
        lines += [_line("" if i else "possible", p) for i, p in enumerate(self.curve)]
        return "\n".join([*rows, "", *lines, f"and {shown(self.others)} of parameters, buffers and inputs"])


def _line(name: str, point: Point) -> str:
    return f"{name:15}  {shown(point.kept):>9}  {shown(point.peak):>9}  {point.flops / 1e9:8.1f}  {point.units}"


@dataclass(frozen=True)
class _Survey:
    """A step before it is planned: its units, its bytes and its work."""

    tuned: UtcGraphModule
    arguments: Mapping[str, object]
    units: tuple[Unit, ...]
    before: Simulated
    step: Simulated
    model: Model
    others: int
    known: dict[frozenset[int], Simulated] = field(default_factory=dict)

    @classmethod
    def of(cls, tuned: UtcGraphModule, arguments: Mapping[str, object]) -> _Survey:
        units = units_of(tuned.graph, tuned, tuned.follows_mode)
        before = simulate(tuned, arguments, as_it_is=True)
        step = simulate(tuned, arguments, [(u.first, u.last) for u in units])
        others = _bytes_of([*tuned.parameters(), *tuned.buffers(), *tensors(arguments)])
        return cls(tuned, arguments, units, before, step, Model(step, [True] * len(units)), others)

    def simulated(self, again: frozenset[int]) -> Simulated:
        """The step in which these units run again."""
        if again not in self.known:
            units = [(self.units[i].first, self.units[i].last) for i in sorted(again)]
            self.known[again] = simulate(self.tuned, self.arguments, again=units)
        return self.known[again]

    def plan(self, chosen: frozenset[int], expected: Simulated) -> MemoryPlan:
        """The plan in which some units run again."""
        units, model, before = self.units, self.model, self.before
        return MemoryPlan(
            tuple((units[i].first, units[i].last) for i in sorted(chosen)),
            tuple((u.path, model.kept[i], model.work[i], i in chosen) for i, u in enumerate(units)),
            Point(before.kept, before.peak, before.flops, 0),
            Point(expected.kept, expected.peak, expected.flops, len(chosen)),
            _curve(model, self.step),
            self.others,
        )


def _fitting(survey: _Survey, limit: int) -> tuple[frozenset[int], Simulated] | None:
    """Units that run again, and their step; tried with a lower limit while the step itself is above it."""
    aim = limit
    for _ in range(_TRIES):
        chosen = survey.model.within(aim)
        tried = survey.model.every if chosen is None else chosen
        expected = survey.simulated(tried)
        if expected.peak <= limit:
            return tried, expected
        if chosen is None:
            return None
        aim -= max(expected.peak - limit, 1)
    return None


def _least(survey: _Survey) -> tuple[frozenset[int], Simulated]:
    """The units whose running again has the lowest peak that is found, and that step."""
    candidates = dict.fromkeys((survey.model.every, survey.model.least(), frozenset[int]()))
    tried = [(chosen, survey.simulated(chosen)) for chosen in candidates]
    best = min(tried, key=lambda pair: pair[1].peak)
    while (found := _fitting(survey, int(_LOWER * best[1].peak))) is not None:
        best = found
    return best


def _too_small(survey: _Survey, least: int, budget: float | int | str, *, is_share: bool) -> UtcError:
    possible = f"{shown_up(least + survey.others)}, of which {shown(survey.others)} are parameters, buffers and inputs"
    share = ceil(1000 * least / survey.before.peak) / 1000
    if is_share and share <= 1:
        possible = f"{share:.3f}"
    return UtcError(
        f"a step does not fit the memory budget {budget if isinstance(budget, Real) else repr(budget)}",
        why=f"the least possible with these inputs is {possible}",
        fix="give a larger budget, or example inputs with a smaller batch",
        code="memory/budget",
    )


def _curve(model: Model, step: Simulated) -> tuple[Point, ...]:
    found: list[Point] = []
    for chosen in (*(model.within(int(share * step.peak)) for share in _POINTS), model.every):
        if chosen is None:
            continue
        point = Point(model.held(chosen), model.peak(chosen), model.flops(chosen), len(chosen))
        if not found or point.peak < found[-1].peak:
            found.append(point)
    return tuple(found)


def _arguments(tuned: UtcGraphModule, example_inputs: object) -> dict[str, object]:
    """The inputs by name; by default those that the model was captured with."""
    if example_inputs is None:
        if tuned.example_inputs is None:
            raise UtcError(
                "the module has no example inputs",
                fix="give them: tuned.plan_memory(budget, (x,))",
                code="memory/inputs",
            )
        return dict(tuned.example_inputs.arguments(tuned.dtype, tuned.device))
    if not isinstance(example_inputs, (torch.Tensor, tuple, list, Mapping)):
        raise UtcError(
            f"the example inputs must be a tuple, a dict or a tensor, not {type(example_inputs).__name__}",
            fix="pass what the module is called with: tuned.plan_memory(budget, (x,))",
            code="arguments/type",
        )
    kwargs = dict(example_inputs) if isinstance(example_inputs, Mapping) else {}
    given = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else example_inputs
    args = () if isinstance(example_inputs, Mapping) else tuple(given)
    try:
        return dict(inspect.signature(tuned.forward).bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise UtcError(
            "the example inputs do not fit the module's forward",
            why=str(error),
            fix="pass what the module is called with: a tuple, or a dict by names of inputs",
            code="memory/inputs",
        ) from error


def _bytes_of(given: Sequence[torch.Tensor | nn.Parameter]) -> int:
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in given}
    return sum(storages.values())
