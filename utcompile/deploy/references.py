"""What PyTorch computes at several sizes, the smallest and the largest that a model allows included."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass

from torch import Tensor, nn

from utcompile.deploy.axes import BATCH, Axis, bounded, is_allowed
from utcompile.deploy.call import Call
from utcompile.errors import GuardError, UtcError

_BATCH_SIZES = (1, 3, 8)
_TRIES = 6  # sizes of an axis that are tried until one runs
_MOST = 2**22  # numbers in an input at the largest size that is tried, or 16 times the example's


@dataclass(frozen=True)
class Expected:
    """Inputs with PyTorch's outputs on them.

    Attributes:
        source: where the inputs come from: `example`, `random`, `check_inputs[0]`.
        sizes: the size of each axis.
        tensors: the inputs, in the order of the call.
        outputs: by name.
    """

    source: str
    sizes: Mapping[str, int]
    tensors: tuple[Tensor, ...]
    outputs: dict[str, Tensor]

    @property
    def batch(self) -> int:
        """The batch size."""
        return self.sizes.get(BATCH, 1)

    @property
    def shown(self) -> str:
        """The other sizes, as `length=7`."""
        return ", ".join(f"{name}={size}" for name, size in self.sizes.items() if name != BATCH)


def references(
    model: nn.Module, call: Call, batch_sizes: Sequence[int] | None, check_inputs: object = None
) -> list[Expected]:
    """The inputs to compare on, with PyTorch's outputs: the example, a user's samples, random inputs at other sizes.

    Args:
        batch_sizes: None: 1, 3 and 8, without those that a guard of the captured model refuses.

    Raises:
        UtcError: the model does not run at a batch size, or an axis takes no other size than the example's.
    """
    found = [Expected("example", call.sizes, call.tensors, reference(model, call, call.tensors, call.batch))]
    axes = bounded(model, call.sizes)
    if BATCH in call.sizes:
        for seed, batch in enumerate(_BATCH_SIZES if batch_sizes is None else batch_sizes):
            try:
                found.append(_drawn(model, call, {BATCH: batch}, seed))
            except GuardError:
                if batch_sizes is not None:
                    raise
    for seed, axis in enumerate(axes):
        if axis.name != BATCH:
            found += _at_other_sizes(model, call, axis, seed)
    for number, sample in enumerate(check_inputs if isinstance(check_inputs, list) else [check_inputs]):
        if sample is not None:
            dynamic = {name: shape for name, shape in zip(call.names, call.axes, strict=True) if shape}
            given = Call.of(model, sample, dynamic=dynamic)
            outputs = reference(model, call, given.tensors, given.batch)
            found.append(Expected(f"check_inputs[{number}]", given.sizes, given.tensors, outputs))
    return found


def _at_other_sizes(model: nn.Module, call: Call, axis: Axis, seed: int) -> list[Expected]:
    """The smallest size at which the model runs, and the largest that is tried; with batches that differ."""
    found: list[Expected] = []
    largest = 1 if BATCH in call.sizes else call.batch
    for sizes, batch in ((_small(axis), max(2, call.batch)), (_large(axis, call), largest)):
        for size in sizes:
            others = {axis.name: size, **({BATCH: batch} if BATCH in call.sizes else {})}
            try:
                found.append(_drawn(model, call, others, seed))
                break
            except UtcError:
                try:  # the batch may be what is refused
                    found.append(_drawn(model, call, {axis.name: size}, seed))
                    break
                except UtcError:
                    continue
    if not found:
        raise UtcError(
            f"the model runs at no other size of {axis.name!r} than {axis.example}",
            why=f"it was captured as {axis}",
            fix="capture the model with this size fixed",
            code="export/fixed-size",
        )
    return found


def _small(axis: Axis) -> list[int]:
    """Sizes from the smallest on, in growing steps."""
    found, size = [axis.low], axis.low
    for _ in range(_TRIES):
        size += max(axis.step, size // axis.step * axis.step)
        found.append(size)
    before = axis.example - axis.step
    return [n for n in dict.fromkeys([*found, before]) if axis.low <= n < axis.example]


def _large(axis: Axis, call: Call) -> list[int]:
    """The largest size, or where it is not bounded or too large to try, others above the example's."""
    most = max(
        t.numel() // t.shape[d] ** list(shape.values()).count(axis.name)
        for t, shape in zip(call.tensors, call.axes, strict=True)
        for d, name in shape.items()
        if name == axis.name
    )
    room = max(_MOST, 16 * most * axis.example) // most
    sizes = [*([axis.high] if axis.high else []), 2 * axis.example + axis.step, axis.example + axis.step]
    return [n for n in sizes if axis.example < n <= min(room, 4096)]


def trace_sizes(model: nn.Module, call: Call) -> dict[str, int]:
    """Sizes to trace at: two or more, for torch takes 0 and 1 for constants; unlike one another; and allowed."""
    allowed = is_allowed(model)
    chosen: dict[str, int] = dict(call.sizes)
    taken: set[int] = set()
    for axis in bounded(model, call.sizes):
        for size in _candidates(axis):
            if size >= 2 and size not in taken and allowed({**chosen, axis.name: size}):
                chosen[axis.name] = size
                break
        taken.add(chosen[axis.name])
    return chosen


def _candidates(axis: Axis) -> Iterator[int]:
    first = 2 if axis.name == BATCH else axis.example
    yield first
    for n in range(1, 16):
        yield first + n * axis.step
        if first - n * axis.step >= axis.low:
            yield first - n * axis.step


def _drawn(model: nn.Module, call: Call, sizes: Mapping[str, int], seed: int) -> Expected:
    """Random inputs at other sizes; rows of the example where the model does not take what is drawn."""
    whole = {**call.sizes, **sizes}
    at: object = sizes[BATCH] if set(sizes) == {BATCH} else ", ".join(f"{k}={v}" for k, v in sizes.items())
    tensors = call.random(sizes, seed)
    try:
        return Expected("random", whole, tensors, reference(model, call, tensors, at))
    except GuardError:
        raise
    except UtcError:
        tensors = call.in_rows(sizes, seed)
        return Expected("rows of the example", whole, tensors, reference(model, call, tensors, at))


def reference(model: nn.Module, call: Call, tensors: Sequence[Tensor], at: object) -> dict[str, Tensor]:
    """What PyTorch computes, or a `UtcError` that says at which batch size it fails."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):  # torch.fx prints the whole traceback of an error, and sizes are tried
            found = call.run(model, tensors)
        sys.stderr.write(said.getvalue())
        return found
    except UtcError:
        raise
    except Exception as error:  # whatever a user's forward raises
        raise UtcError(
            f"the model does not run at batch size {at}" if isinstance(at, int) else f"the model does not run at {at}",
            why=f"{type(error).__name__}: {error}",
            fix="give example inputs its forward accepts; name the inputs that carry the batch in `batch_inputs`",
            code="export/fixed-size",
        ) from error
