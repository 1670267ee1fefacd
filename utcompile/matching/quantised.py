"""Weights that no update can be added to: integers, float8, packed numbers and tensor subclasses of quantisers.

Such layers take a branch, `y + s·B(A(x))`, which needs no weight: QLoRA (arXiv:2305.14314) for any layer.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx, nn

from utcompile.graph import GraphView, Operation, find_state, value_of
from utcompile.graph.stored import stored_in

_OURS = ("torch.nn.parameter", "torch._subclasses", "torch.distributed", "torch")


def quantised(name: str, tensor: torch.Tensor) -> str:
    """Why no update can be added to a parameter or buffer; empty where one can.

    >>> quantised("w", torch.zeros(2, dtype=torch.int8)), quantised("w", torch.zeros(2, dtype=torch.float16))
    ('w is int8', '')
    """
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.dtype.itemsize == 1:
        return f"{name} is {str(tensor.dtype).removeprefix('torch.')}"
    module = type(tensor).__module__
    if module not in _OURS and not module.startswith(("torch._subclasses.", "torch.distributed.")):
        return f"{name} is a {type(tensor).__name__}"
    return ""


def quantised_operand(operand: fx.Node, view: GraphView) -> str:
    """Why no update can be added to the weight of a state node; empty where one can.

    A parameter of the operand's own size that holds floating-point numbers is one: a scale is smaller.
    """
    size = _size(operand)
    reason = ""
    for name, tensor in _behind(operand, view):
        why = quantised(name, tensor)
        if not why and isinstance(tensor, nn.Parameter) and tensor.numel() == size:
            return ""
        if why and tensor.numel() > 1:
            reason = reason or why
    return reason


def quantised_module(path: str, view: GraphView) -> str:
    """The first quantised tensor inside a module, in words; empty where there is none."""
    module = view.module.get_submodule(path)
    named = [*module.named_parameters(), *module.named_buffers()]
    return next((why for n, t in named if t.dim() and (why := quantised(f"{path}.{n}".lstrip("."), t))), "")


def as_linear(source: fx.Node, target: fx.Node, view: GraphView) -> tuple[Operation, tuple[int, int]] | None:
    """A layer as a linear with a branch, and the shape `(out, in)` of the weight that the linear would have.

    None where its input and result are not `(…, in)` and `(…, out)` at the same positions.
    """
    read, written = value_of(source), value_of(target)
    if read is None or written is None or not read.rank or read.shape[:-1] != written.shape[:-1]:
        return None
    shape = (written.shape[-1], read.shape[-1])
    if not all(isinstance(n, int) for n in shape) or not read.dtype.is_floating_point:
        return None
    return Operation("linear", (source,)), shape  # type: ignore[return-value]


def _size(node: fx.Node) -> int:
    value = value_of(node)
    return torch.Size(value.sizes(2)).numel() if value is not None else -1


def _behind(operand: fx.Node, view: GraphView) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters and buffers from which a value is computed."""
    for node in stored_in(operand):
        found = find_state(view.module, str(node.target))
        if found is not None:
            yield str(node.target), found
