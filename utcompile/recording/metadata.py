"""Reads of metadata of tensors: sizes and strides become numbers that remember, flags become questions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

from utcompile.graph import info
from utcompile.recording.active import Args, Function, Kwargs
from utcompile.recording.expressions import Expression
from utcompile.recording.questions import Questions
from utcompile.recording.tracked import Sizes, plain, tracked
from utcompile.recording.writer import Writer

T = torch.Tensor
_PROPERTIES = (
    "shape dtype device ndim requires_grad layout is_cuda is_leaf grad_fn is_meta is_sparse _version"
).split()
# reads of metadata: they run, and leave no node
READS: frozenset[object] = frozenset({
    *(getattr(T, name).__get__ for name in _PROPERTIES), T.dim, T.size, T.numel, T.nelement, T.stride, T.__len__,
    T.is_floating_point, T.is_contiguous, T.is_complex, T.untyped_storage, T.data_ptr, T.element_size, T.storage_offset,
    T.get_device, torch.numel,
})  # fmt: skip
NBYTES: Callable[[T], int] = vars(torch._C.TensorBase)["nbytes"].__get__
_SHAPE = vars(torch._C.TensorBase)["shape"].__get__
_COUNTS = (T.numel, T.nelement, torch.numel)
_FLAGS: dict[object, str] = {
    vars(torch._C.TensorBase)["requires_grad"].__get__: "requires_grad",
    T.is_contiguous: "is_contiguous",
}


class Metadata:
    """Answers reads of metadata that may differ between calls.

    Args:
        writer: knows the nodes of tensors.
        questions: where flags are written down.

    Attributes:
        readings: the sizes and strides that were read, with their values.
    """

    def __init__(self, writer: Writer, questions: Questions) -> None:
        self._writer, self._questions = writer, questions
        self.readings: dict[Expression, int] = {}

    def size(self, tensor: T, dim: int) -> int:
        """A size as a number that remembers."""
        return self._reading("size", tensor, dim, tensor.shape[dim])

    def nbytes(self, tensor: T) -> int:
        """The number of bytes of a tensor, from its sizes."""
        return self._count(tensor) * tensor.element_size()

    def read(self, func: Function, args: Args, kwargs: Kwargs, out: object) -> object:
        """The result of a call of `READS`, with tracked numbers for sizes and strides."""
        tensor = args[0] if args and isinstance(args[0], T) else None
        node = self._writer.node_of(tensor) if tensor is not None else None
        if tensor is None or node is None:
            return out
        dim = plain(args[1] if len(args) > 1 else kwargs.get("dim"))
        if func == _SHAPE or (func is T.size and dim is None):
            return Sizes(self._all("size", tensor, tensor.shape))
        if func is T.size and isinstance(dim, int):
            return self.size(tensor, dim)
        if func in _COUNTS:
            return self._count(tensor)
        if func is T.stride and tensor.dim():
            steps = self._all("stride", tensor, tensor.stride())
            return steps[dim] if isinstance(dim, int) else steps
        if func is T.__len__:
            int(self.size(tensor, 0))
        elif func in _FLAGS and isinstance(out, bool) and len(args) == 1 and not kwargs:
            self._questions.flag(info(node).serial, _FLAGS[func], out)
        return out

    def _count(self, tensor: T) -> int:
        return math.prod(self._all("size", tensor, tensor.shape))

    def _all(self, kind: str, tensor: T, values: Iterable[int]) -> tuple[int, ...]:
        return tuple(self._reading(kind, tensor, dim, value) for dim, value in enumerate(values))

    def _reading(self, kind: str, tensor: T, dim: int, value: int) -> int:
        """A size or a stride as a number that remembers; those of weights are constants."""
        node = self._writer.node_of(tensor)
        if node is None or node.op == "get_attr":
            return value
        expression = Expression.reading(kind, info(node).serial, dim % max(1, tensor.dim()))
        self.readings[expression] = value
        return tracked(value, expression)
