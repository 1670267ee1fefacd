"""Tensors of unusual layouts: which ones recording takes, and how two of them compare."""

from __future__ import annotations

import torch
from torch import nn

from utcompile.errors import UtcError
from utcompile.graph.nested import tensors
from utcompile.graph.structure import attribute_tensors, named_state

T = torch.Tensor


def check_layouts(model: nn.Module, arguments: dict[str, object]) -> None:
    """Every input, parameter, buffer and tensor attribute is dense, or sparse with coordinates (COO).

    Raises:
        UtcError: one is not; it is named.
    """
    named = [(f"the input {name!r}", t) for name, value in arguments.items() for t in tensors(value)]
    named += [(f"the model's tensor {name!r}", t) for name, t in named_state(model).items()]
    named += [(f"the model's tensor {name!r}", t) for name, t in attribute_tensors(model).values()]
    for what, tensor in named:
        unusual = _unusual(tensor)
        if unusual:
            raise UtcError(
                f"{what} is {unusual}",
                why="capture records dense tensors, and sparse ones in coordinate format (torch.sparse_coo)",
                fix="give it as a dense or a COO tensor, and convert it inside of forward",
                code="capture/unsupported",
            )


def comparable(tensor: T) -> T:
    """The same values in a form that torch compares: dense, and complex halves as pairs."""
    dense = tensor if tensor.layout is torch.strided else tensor.to_dense()
    return torch.view_as_real(dense) if dense.dtype == torch.complex32 else dense


def _unusual(tensor: T) -> str | None:
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.is_quantized:
        return f"quantized ({tensor.dtype})"
    if tensor.layout not in (torch.strided, torch.sparse_coo):
        return f"of the layout {tensor.layout}"
    return None
