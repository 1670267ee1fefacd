"""The working memory of convolutions: what a kernel allocates and frees before it returns.

oneDNN reorders inputs, weights and results into blocks of channels. Where the weights outweigh the values (512 channels
at 5 x 5 pixels), that is more than all else in a step. How much depends on the kernel, so each shape is run once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import unset_fake_temporarily

from utcompile.graph.nested import tensors

_MEASURED = (torch.ops.aten.convolution, torch.ops.aten.convolution_backward)


@dataclass(frozen=True)
class _Shape:
    """A tensor without its numbers."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, t: torch.Tensor) -> _Shape:
        return cls(tuple(t.shape), t.stride(), t.dtype)

    def zeros(self) -> torch.Tensor:
        length = 1 + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        return torch.zeros(max(length, 0), dtype=self.dtype).as_strided(self.size, self.stride)


def working_memory(func: OpOverload, args: Sequence[object], kwargs: Mapping[str, object]) -> int:
    """The most bytes that a call allocates at one moment, its results included; 0 where it is not measured.

    Args:
        func: an operator of ATen. Convolutions on a CPU are measured.
        args, kwargs: what it is called with; no numbers are read.
    """
    given = tensors((args, kwargs))
    if func.overloadpacket not in _MEASURED or any(t.device.type != "cpu" for t in given):
        return 0
    shapes = tuple(map(_shapes, args)), tuple((name, _shapes(value)) for name, value in kwargs.items())
    return _measured(func, *shapes)


def _shapes(value: object) -> Hashable:
    """Nested arguments that can be a key."""
    if isinstance(value, torch.Tensor):
        return _Shape.of(value)
    if isinstance(value, Iterable) and not isinstance(value, str):
        return tuple(map(_shapes, value))
    assert isinstance(value, Hashable)
    return value


@lru_cache(maxsize=4096)
def _measured(func: OpOverload, args: tuple[object, ...], kwargs: tuple[tuple[str, object], ...]) -> int:
    with unset_fake_temporarily(), torch.no_grad():
        made = [_real(part) for part in args]
        named = {name: _real(part) for name, part in kwargs}
        try:
            return highest(lambda: func(*made, **named))
        except RuntimeError:  # there is no such kernel here
            return 0


def _real(part: object) -> object:
    return part.zeros() if isinstance(part, _Shape) else part


def highest(call: Callable[[], object]) -> int:
    """The most bytes that torch's allocator on the CPU has out at one moment of a call; 0 where it cannot be watched.

    The events are those of torch's older profiler, which writes nothing to the console.
    """
    try:
        from torch.autograd import _disable_profiler_legacy, _enable_profiler_legacy

        config = torch.autograd.ProfilerConfig(
            torch.autograd.ProfilerState.CPU, False, True, False, False, False, torch._C._profiler._ExperimentalConfig()
        )
        _enable_profiler_legacy(config)
    except (ImportError, AttributeError, RuntimeError):  # another torch, or a profiler is on
        return 0
    try:
        result = call()
    finally:
        events = _disable_profiler_legacy()
    del result
    alive = most = 0
    for event in (e for thread in events for e in thread if str(e.kind()) == "memory_alloc"):
        alive += event.cpu_memory_usage()
        most = max(most, alive)
    return most
