"""Run one node of a graph in float64, on the CPU whatever device the model is on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn


def run_node(root: nn.Module, node: fx.Node, lookup: Callable[[fx.Node], Any]) -> Any:
    """The value of a node, parameters and buffers converted to float64.

    Args:
        root: what the graph's targets name; it stays as it is.
        node: the node.
        lookup: the values of the nodes it reads.
    """
    if node.op == "get_attr":
        path, _, attribute = str(node.target).rpartition(".")
        state = getattr(root.get_submodule(path), attribute).detach()
        return state.cpu().double() if state.is_floating_point() else state.cpu()
    args: Any = fx.node.map_arg(node.args, lookup)
    kwargs: Any = fx.node.map_arg(node.kwargs, lookup)
    with torch.no_grad():
        if node.op == "call_module":
            leaf = copy.deepcopy(root.get_submodule(str(node.target)))
            return leaf.to("cpu", torch.float64).eval()(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        function: Any = node.target
        return function(*args, **kwargs)
