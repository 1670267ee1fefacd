"""Facts about calls of torch: the function of an operator, and whether a result is a new value."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence

import torch
from torch._subclasses.fake_tensor import FakeTensor

from utcompile.graph.functions import copied
from utcompile.graph.nested import flat, map_tensors
from utcompile.ops import Trait, callables, callables_with, having

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
OPERATORS: dict[str, Callable[..., object]] = {
    **{f"__{n}__": getattr(operator, n) for n in [*_NAMES.split(), *_UNREFLECTED.split()]},
    **{f"__r{n}__": getattr(operator, n) for n in _NAMES.split()},
    **{f"__i{n}__": getattr(operator, f"i{n}") for n in [*_NAMES.split(), "and", "or", "xor"] if n != "matmul"},
    "__and__": operator.and_, "__or__": operator.or_, "__xor__": operator.xor, "__invert__": operator.invert,
}  # fmt: skip
REFLECTED = {f"__r{n}__" for n in _NAMES.split()}


def fresh(out: object, read: Sequence[T], written: Sequence[T]) -> object:
    """Give an out-of-place call that returned its own input a new value: later reads of the input must not find it."""
    own = {id(t) for t in read} - {id(t) for t in written}
    if not any(id(t) in own for t in flat(out)):
        return out
    return map_tensors(lambda v: _alias(v) if id(v) in own else v, out)


def _alias(tensor: T) -> T:
    if type(tensor) is not FakeTensor:
        return tensor.view_as(tensor)
    with torch._C.DisableTorchFunction():  # else the mode hears of it first
        return tensor.view_as(tensor)


def without_override(function: Callable[..., object]) -> Callable[..., object]:
    """A copy of a function of torch that never looks for an override of itself."""
    return copied(function, has_torch_function=lambda _: False)


def has_size_of_data(func: object, args: Sequence[object], kwargs: Mapping[str, object]) -> bool:
    """Whether the size of a call's result depends on values: `x[mask]`, `x[:k]`, `nonzero`, repeats as a tensor."""
    name = getattr(func, "__name__", "")
    if func is T.__getitem__:
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        bounds = [(i.start, i.stop, i.step) for i in index if isinstance(i, slice)]
        return any(t.dtype == torch.bool for t in flat(index)) or bool(flat(bounds))
    numbers = flat((args, kwargs)) if name in _MADE_OF_SIZES else flat((args[1:], kwargs))
    return name in _SIZE_OF_DATA or (name in _SIZED_BY_ARGUMENTS and bool(numbers))


def version_of(t: T) -> int:
    """The number of writes into a tensor that torch has counted."""
    try:
        return t._version
    except RuntimeError:  # an inference tensor has none
        return 0
