"""What a recording knows of a call of torch: its operator's function, and whether its result is a new value."""

from __future__ import annotations

import operator
import types
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from utcompile.ops import Trait, callables, callables_with, having
from utcompile.recording.nested import flat, map_tensors

T = torch.Tensor
_SIZE_OF_DATA = callables(having(Trait.SIZE_OF_DATA))
# calls that take sizes, bounds or counts, which may be given as tensors of one whole number
_MADE_OF_SIZES = {"logspace"} | callables_with("size", "start", "n", "row", without="input")
_SIZED_BY_ARGUMENTS = {"resize_"} | _MADE_OF_SIZES | callables_with(
    "size", "shape", "sizes", "step", "start", "repeats", "chunks", "k", "num_classes", "pad",
    "split_size_or_sections", "indices_or_sections",
)  # fmt: skip
_NAMES = "add sub mul truediv floordiv mod matmul pow"
_UNREFLECTED = "neg eq ne lt le gt ge"
OPERATORS: dict[str, Callable[..., Any]] = {
    **{f"__{n}__": getattr(operator, n) for n in [*_NAMES.split(), *_UNREFLECTED.split()]},
    **{f"__r{n}__": getattr(operator, n) for n in _NAMES.split()},
    **{f"__i{n}__": getattr(operator, f"i{n}") for n in [*_NAMES.split(), "and", "or", "xor"] if n != "matmul"},
    "__and__": operator.and_, "__or__": operator.or_, "__xor__": operator.xor, "__invert__": operator.invert,
}  # fmt: skip
REFLECTED = {f"__r{n}__" for n in _NAMES.split()}


def fresh(out: Any, read: list[T], written: list[T]) -> Any:
    """An out-of-place call that returned its own input gets a new value, or later reads of the input would find it."""
    own = {id(t) for t in read} - {id(t) for t in written}
    if not any(id(t) in own for t in flat(out)):
        return out
    return map_tensors(lambda v: _alias(v) if id(v) in own else v, out)


def _alias(tensor: T) -> T:
    if type(tensor) is not FakeTensor:
        return tensor.view_as(tensor)
    with torch._C.DisableTorchFunction():  # else the mode hears of it first
        return tensor.view_as(tensor)


def without_override(function: Any) -> Callable[..., Any]:
    """A function of torch whose own first question, whether it is overridden, is answered no."""
    scope = {**function.__globals__, "has_torch_function": lambda _: False}
    copied = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__)
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


def has_size_of_data(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether the size of a call's result depends on values: `x[mask]`, `x[:k]`, `nonzero`, repeats as a tensor."""
    name = getattr(func, "__name__", "")
    if func is T.__getitem__:
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        bounds = [(i.start, i.stop, i.step) for i in index if isinstance(i, slice)]
        return any(t.dtype == torch.bool for t in flat(index)) or bool(flat(bounds))
    numbers = flat((args, kwargs)) if name in _MADE_OF_SIZES else flat((args[1:], kwargs))
    return name in _SIZE_OF_DATA or (name in _SIZED_BY_ARGUMENTS and bool(numbers))


def version_of(t: T) -> int:
    """How many writes into a tensor torch has counted."""
    try:
        return t._version
    except RuntimeError:  # an inference tensor has none
        return 0
