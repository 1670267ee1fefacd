"""Run one node of a graph with its parameters and buffers in float64, rounded, or as shapes alone: as a cast says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn

Cast = Callable[[str, torch.Tensor], torch.Tensor]


def in_float64(name: str, state: torch.Tensor) -> torch.Tensor:
    """A parameter or buffer in float64, on the CPU whatever device the model is on."""
    state = state.detach().cpu()
    return state.double() if state.is_floating_point() else state


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
            return torch.func.functional_call(leaf, state, args, kwargs, tie_weights=False)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        function: Any = node.target
        return function(*args, **kwargs)


def _state(leaf: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of every module once: of a module with two names, torch would put back what it had put in."""
    for path, module in leaf.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield f"{path}.{name}".lstrip("."), tensor
