"""Nodes that are computed from parameters, buffers and numbers alone."""

from __future__ import annotations

import torch
from torch import fx

from utcompile.graph import info

_MADE_FROM_NOTHING = frozenset((torch.arange, torch.zeros, torch.ones, torch.full, torch.linspace, torch.eye))


def constant_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that are computed from parameters, buffers and numbers alone."""
    known = ConstantNodes()
    return {node for node in graph.nodes if node in known}


class ConstantNodes:
    """The nodes that are computed from parameters, buffers and numbers alone. Each is looked at once, when needed.

    A graph may be changed meanwhile, as long as no node that was looked at becomes another.
    """

    def __init__(self) -> None:
        self._known: dict[fx.Node, bool] = {}

    def __contains__(self, node: fx.Node) -> bool:
        stack = [node]
        while stack:
            last = stack[-1]
            inputs = last.all_input_nodes
            unknown = next((i for i in inputs if i not in self._known), None)
            if last.op != "output" and unknown is not None and all(self._known.get(i, True) for i in inputs):
                stack.append(unknown)
                continue
            self._known[last] = _is_start(last) if not inputs else all(self._known.get(i, False) for i in inputs)
            stack.pop()
        return self._known[node] and node.op != "output"


def _is_start(node: fx.Node) -> bool:
    """Whether a node that reads no other is constant."""
    if node.op == "call_module":
        return info(node).site is not None  # a module of the base that reads nothing may be random
    return node.op == "get_attr" or (node.op == "call_function" and node.target in _MADE_FROM_NOTHING)
