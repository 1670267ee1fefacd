"""Proof that a captured graph computes what the model computes.

The model is the user's own, called as the user calls it. Whatever a run writes, into inputs, buffers, attributes or
random numbers, is put back after it, and is compared too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from utcompile.errors import UtcError
from utcompile.graph import UtcGraphModule, every_name
from utcompile.graph.difference import relative_error
from utcompile.graph.nested import map_tensors, tensors
from utcompile.graph.values_kept import values_kept
from utcompile.recording.bounds import equal, why_not
from utcompile.recording.double import ROUNDED, SMALL, InFloat64, in_float64
from utcompile.recording.inputs import Inputs
from utcompile.recording.layouts import comparable
from utcompile.recording.mode import in_mode, trainable_as
from utcompile.recording.patches import WithoutFastPath
from utcompile.recording.samples import Sample, plan_samples, unrecorded
from utcompile.recording.state import Snapshot
from utcompile.recording.untouched import random_numbers_kept, seed
from utcompile.recording.watch import Watch, lasting_error

T = torch.Tensor
_EXAMPLE = "at the example inputs"
_UNRECORDED = ", a size that was not recorded"
_SMALL = 2**16  # numbers in the inputs
_FAST = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)


def check(model: nn.Module, captured: UtcGraphModule, inputs: Inputs, verify: str, watch: Watch) -> str:
    """Compare as `verify` asks; returns what was compared, for the report.

    Raises:
        UtcError: an output differs, or there are no values to compare.
    """
    if verify == "shapes":
        return "shapes"
    if any(p.is_meta for p in [*model.parameters(), *model.buffers()]):
        raise UtcError(
            "the model has parameters on the meta device, so there are no values to verify",
            fix='pass verify="shapes", or load the weights first: model.to_empty(device="cpu") and load_state_dict',
            code="capture/differs",
        )
    with in_mode(model, training=False) as own:
        both = _Both(own, captured, inputs, watch)
        both.compare([inputs.arguments], _EXAMPLE)
        other = unrecorded(inputs.symbols, inputs.example)
        if other is not None and verify != "full" and not _is_cheap(inputs, other):
            other = None
        if other is not None:
            both.compare([inputs.at(other.sizes)], f"at {other}{_UNRECORDED}")
        if watch.assigned or both.written:
            both.compare_calls(inputs.arguments, inputs.at(other.sizes) if other else inputs.arguments)
        if verify != "full":
            return "values at the example inputs" + (f" and at {other}" if other else "") + both.by_rounding()
        samples = plan_samples(inputs.symbols, follow=False)
        for i, sample in enumerate(samples[:: max(1, len(inputs.symbols))]):
            both.compare([inputs.at(sample.sizes)], f"at {sample}", gradients=i == 0)
    if captured.follows_mode:
        with in_mode(model, training=True) as own:
            trained = _Both(own, captured.train(), inputs, watch)
            trained.compare([inputs.arguments], "in training", gradients=True)
            both.rounded += trained.rounded
        captured.eval()
    modes = ", in both modes" if captured.follows_mode else ""
    return f"values and gradients at several sizes{modes}{both.by_rounding()}"


def _is_cheap(inputs: Inputs, sample: Sample) -> bool:
    """Whether a sample's inputs are no larger than the example's, or small: four images can cost a recording."""
    there, here = (sum(t.numel() for t in tensors(given)) for given in (inputs.at(sample.sizes), inputs.arguments))
    return there <= max(here, _SMALL)


@dataclass
class _Outcome:
    """The results of calls of a module.

    Attributes:
        outputs: the tensors of all calls' outputs.
        gradients: of floating-point inputs for the sum of outputs; None where they cannot be computed.
        written: parameters and buffers that the calls changed, with their new values.
    """

    outputs: list[T]
    gradients: list[T] | None = field(default_factory=list)
    written: dict[str, T] = field(default_factory=dict)


class _Both:
    """A model and its capture, which run on the same inputs under one seed."""

    def __init__(self, model: nn.Module, captured: nn.Module, inputs: Inputs, watch: Watch) -> None:
        self.model, self.captured, self.inputs, self.watch = model, captured, inputs, watch
        self.written: dict[str, None] = {}  # names of what the model's calls write into
        self.rounded: list[str] = []  # the calls in which they differ by roundings, which vanish in float64
        self._fast = any(isinstance(m, _FAST) for m in model.modules())

    def compare(self, calls: Sequence[dict[str, object]], what: str, *, gradients: bool = False) -> bool:
        """Compare outputs, gradients and written state: bit for bit on a CPU, elsewhere within rounding.

        A difference on a CPU that vanishes in float64 is the rounding of other kernels, and is noted.

        At sizes of our own making a model may refuse the values, and a guard of the capture too; there is nothing to
        compare then.

        Returns:
            Whether anything was compared.

        Raises:
            UtcError: one differs; it names which, and by how much.
        """
        try:
            expected = self._run(self.model, calls, gradients)
        except Exception as error:  # whatever a model raises of values that it does not take
            if what != _EXAMPLE:
                return False  # nothing to compare: the sizes are made up
            raise UtcError(
                "the model fails on the example inputs",
                why=f"{type(error).__name__}: {error}",
                fix="give example inputs on which it runs: its values count too",
                code="capture/differs",
            ) from error
        self.written |= dict.fromkeys(expected.written)
        try:
            found = self._run(self.captured, calls, gradients)
        except UtcError:
            if what == _EXAMPLE:
                raise
            return False  # the capture refuses such a call by name
        except Exception as error:
            where = f"{what}: the model runs there"
            raise UtcError(
                "the capture fails", where=where, why=f"{type(error).__name__}: {error}", code="capture/differs"
            ) from error
        difference = _difference(expected, found)
        if difference is not None and self._is_rounding(expected, found, calls):
            self.rounded.append(what)
            difference = _difference(*(replace(o, outputs=[], written={}) for o in (expected, found)))
        if difference is not None:
            raise self._error(difference, what, expected, calls, gradients)
        return True

    def by_rounding(self) -> str:
        """Where the two differ by roundings, for the report."""
        if not self.rounded:
            return ""
        first, *rest = self.rounded
        where = first.removesuffix(_UNRECORDED) + (" and elsewhere" if rest else "")
        return f"; the same in float64, with other roundings {where}"

    def _is_rounding(self, expected: _Outcome, found: _Outcome, calls: Sequence[dict[str, object]]) -> bool:
        """Whether a difference is small, and vanishes in float64."""
        if not _is_within(expected, found, SMALL):
            return False
        try:
            model, captured = copy.deepcopy(self.model).double(), copy.deepcopy(self.captured)
            captured.__dict__["fixed_dtype"] = ""  # what names float32 gets float64 here
            captured.double()
            twice, given = _Both(model, captured, self.inputs, self.watch), [in_float64(c) for c in calls]
            with InFloat64():
                expected, found = (twice._run(module, given, gradients=False) for module in (model, captured))
        except Exception:  # a model that cannot be copied, or does not run in float64, proves nothing
            return False
        return _is_within(expected, found, ROUNDED)

    def compare_calls(self, first: dict[str, object], second: dict[str, object]) -> None:
        """A series of calls, each in the state that the one before it left; the second call may be refused.

        Raises:
            UtcError: a later call differs; it names the state.
        """
        try:
            what = "in the third call, where state is kept between calls"
            if not self.compare([first, second, first], what):
                self.compare([first, first, first], what)
        except UtcError as error:
            names = [*self.watch.assigned, *self.written]
            raise lasting_error(
                self.watch.model, names, f"a later call of the model differs: {error.brief()}"
            ) from error

    def _error(
        self,
        difference: _Difference,
        what: str,
        expected: _Outcome,
        calls: Sequence[dict[str, object]],
        gradients: bool,
    ) -> UtcError:
        again = _difference(expected, self._run(self.model, calls, gradients))
        if again is not None:
            return UtcError(
                f"{difference}, and the model differs from itself: {again.short()}",
                where=what,
                why=why_not(difference.expected, "the model is not deterministic: two runs with one seed differ"),
                fix='make it deterministic; or, if that is intended, capture with verify="shapes"',
                code="capture/differs",
            )
        drawn = f"; its forward draws {', '.join(self.watch.drawn)}" if self.watch.drawn else ""
        return UtcError(
            str(difference),
            where=what,
            why=why_not(
                difference.expected,
                "the model is deterministic, so the capture is wrong here: its forward does something else where it is "
                f"traced, or reads values that recording cannot see{drawn}",
            ),
            fix="move the code that chooses into a submodule with few parameters and let it compute from its inputs "
            "alone; or give the model what it makes when it is traced, such as an attention mask, as an input",
            code="capture/differs",
        )

    def _run(self, module: nn.Module, calls: Sequence[dict[str, object]], gradients: bool) -> _Outcome:
        """Call a module under one seed and put everything back."""
        own = Snapshot.of_model(module)  # the capture has state where it has opaque modules
        state = dict(every_name(module))
        flags = nullcontext() if module is self.model else trainable_as(module, self.model)
        try:
            with flags, random_numbers_kept(module) as gpus, values_kept(module) as memory:
                before = {name: t.clone() for name, t in state.items() if not isinstance(t, nn.Parameter)}
                seed(gpus)
                outcome = _Outcome([])
                for arguments in calls:
                    self._call(module, arguments, gradients, outcome)
                # outputs in memory that is put back must be copied first
                outcome.outputs = [o.clone() if memory.shares(o) else o for o in outcome.outputs]
                now = {
                    n: t for n, t in every_name(module) if n not in self.watch.assigned
                }  # caches, and what is unread
                outcome.written = _written(now, before, memory.is_written)
                return outcome
        finally:
            own.put_back()
            self.watch.around.put_back()

    def _call(self, module: nn.Module, arguments: dict[str, object], gradients: bool, outcome: _Outcome) -> None:
        def leaf(t: T) -> T:
            made = t.detach().clone()
            return made.requires_grad_() if t.is_floating_point() and gradients else made

        given = map_tensors(leaf, arguments)
        args, kwargs = self.inputs.as_given(given) if module is self.model else ([], given)
        with torch.set_grad_enabled(gradients), WithoutFastPath() if self._fast else nullcontext():
            outputs = tensors(module(*args, **kwargs))
        outcome.outputs += [o.detach() for o in outputs]
        asked = [t for t in tensors(given) if t.requires_grad]
        total = [o.float().sum() for o in outputs if o.requires_grad]
        if not gradients or not asked or not total:
            return
        try:
            grads = torch.autograd.grad(sum(total), asked, allow_unused=True)  # type: ignore[arg-type]
        except RuntimeError:  # writes in place can make a model that runs, and has no gradient
            outcome.gradients = None
        else:
            outcome.gradients = [torch.zeros(()) if g is None else g for g in grads]


def _written(state: dict[str, T], before: dict[str, T], is_written: Callable[[T], bool]) -> dict[str, T]:
    return {
        name: t.detach().clone()
        for name, t in state.items()
        if (name in before and not equal(t, before[name])) or (name not in before and is_written(t))
    }


@dataclass(frozen=True)
class _Difference:
    """The first difference between two outcomes.

    Attributes:
        name: which output, gradient or buffer.
        expected: the model's.
        found: the capture's; None where it has none.
    """

    name: str
    expected: T
    found: T

    def short(self) -> str:
        """The size of the difference, or the other properties that differ."""
        a, b = self.expected, self.found
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}"
        a, b = comparable(a), comparable(b)
        return f"by {(a.double() - b.double()).abs().max().item():.3g}" if not a.is_complex() else "in values"

    def __str__(self) -> str:
        a, b = self.expected, self.found
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{self.name} of the capture is {b.dtype} {list(b.shape)}, the model's {a.dtype} {list(a.shape)}"
        return f"{self.name} of the capture differs from the model's {self.short()}"


def _is_within(expected: _Outcome, found: _Outcome, bound: float) -> bool:
    """Whether outputs and written state differ by no more than a share of their largest values."""
    if len(expected.outputs) != len(found.outputs) or expected.written.keys() != found.written.keys():
        return False
    pairs = list(zip(expected.outputs, found.outputs, strict=True))
    pairs += [(t, found.written[name]) for name, t in expected.written.items()]
    return all(
        equal(a, b) or (a.is_floating_point() and a.dtype == b.dtype and relative_error(b, a) <= bound)
        for a, b in pairs
    )


def _difference(expected: _Outcome, found: _Outcome) -> _Difference | None:
    """The first difference.

    Raises:
        UtcError: there is nothing to compare with.
    """
    if len(expected.outputs) != len(found.outputs):
        raise UtcError(
            f"the capture yields {len(found.outputs)} tensors, the model {len(expected.outputs)}",
            code="capture/differs",
        )
    pairs = [(f"output {i}", a, b) for i, (a, b) in enumerate(zip(expected.outputs, found.outputs, strict=True))]
    for name, a, b in pairs:
        if not equal(a, b):
            return _Difference(name, a, b)
    if expected.gradients is not None:
        if found.gradients is None:
            raise UtcError("the model can be differentiated, and the capture cannot", code="capture/differs")
        for i, (a, b) in enumerate(zip(expected.gradients, found.gradients, strict=True)):
            if not equal(a, b, gradient=True):
                return _Difference(f"the gradient of input {i}", a, b)
    for name in {**expected.written, **found.written}:
        mine, theirs = _or_empty(expected.written.get(name)), _or_empty(found.written.get(name))
        if not equal(mine, theirs):
            return _Difference(f"the value that a call leaves in {name}", mine, theirs)
    return None


def _or_empty(tensor: T | None) -> T:
    return torch.empty(0) if tensor is None else tensor
