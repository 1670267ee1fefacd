"""Run one node of a graph with its parameters and buffers in float64, rounded, or as shapes alone: as a cast says."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn

Cast = Callable[[str, torch.Tensor], torch.Tensor]


def in_float64(name: str, state: torch.Tensor) -> torch.Tensor:
    """A parameter or buffer in float64, on the CPU whatever device the model is on."""
    return in_precision(state.detach().cpu(), torch.float64)


def in_precision(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Floating-point and complex numbers in a precision, given as a real dtype; others as they are.

    >>> in_precision(torch.ones(1, dtype=torch.complex64), torch.float64).dtype
    torch.complex128
    """
    if tensor.is_complex():
        return tensor.to(torch.complex128 if dtype == torch.float64 else torch.complex64)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def as_real(tensor: torch.Tensor) -> torch.Tensor:
    """Complex numbers as pairs of real ones; real ones as they are."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def double_copy(module: nn.Module) -> nn.Module:
    """A copy of a module on the CPU, in eval, in float64 and complex128."""
    copied = copy.deepcopy(module).cpu().eval()
    for owner in copied.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                owner._parameters[name] = nn.Parameter(in_float64(name, parameter), requires_grad=False)
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[name] = in_float64(name, buffer)
    return copied


def run_node(root: nn.Module, node: fx.Node, lookup: Callable[[fx.Node], Any], cast: Cast = in_float64) -> Any:
    """The value of a node.

    Args:
        root: what the graph's targets name; it stays as it is.
        node: the node.
        lookup: the values of the nodes it reads.
        cast: makes of each parameter and buffer, given with its name, what the node is run with.
    """
    target = str(node.target)
    if node.op == "get_attr":
        path, _, attribute = target.rpartition(".")
        return cast(target, getattr(root.get_submodule(path), attribute))
    args: Any = fx.node.map_arg(node.args, lookup)
    kwargs: Any = fx.node.map_arg(node.kwargs, lookup)
    with torch.no_grad():
        if node.op == "call_module":
            leaf = root.get_submodule(target)
            state = {n: cast(f"{target}.{n}", t) for n, t in _state(leaf)}
            if getattr(leaf, "max_norm", None) is not None:  # it writes into its weight
                state = {n: t.clone() for n, t in state.items()}
            return torch.func.functional_call(leaf, state, args, kwargs, tie_weights=False)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        function: Any = node.target
        if "max_norm" in kwargs and len(args) > 1:
            args = (args[0], args[1].clone(), *args[2:])
        return function(*args, **kwargs)


def _state(leaf: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of every module once: of a module with two names, torch would put back what it had put in."""
    for path, module in leaf.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield f"{path}.{name}".lstrip("."), tensor
