"""Graphs as plain data, for pickling: `fx.Graph` pickles by recursion over its nodes, which long graphs exceed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import fx
from torch.fx.node import Target


@dataclass(frozen=True)
class _Ref:
    """The place of a node in its graph."""

    index: int


@dataclass(frozen=True)
class _Functional:
    """A function of `torch.nn.functional` that pickle cannot name: `max_pool2d` is a closure."""

    name: str


def _by_name(target: Target) -> Target | _Functional:
    if "<locals>" in getattr(target, "__qualname__", ""):
        found = next((name for name, value in vars(F).items() if value is target), None)
        return target if found is None else _Functional(found)
    return target


class FrozenGraph:
    """A graph as a list of rows, one per node; `thaw` builds it again, names and meta included."""

    def __init__(self, graph: fx.Graph) -> None:
        place = {n: _Ref(i) for i, n in enumerate(graph.nodes)}

        lookup: Callable[[fx.Node], Any] = place.__getitem__

        def freeze_meta(value: object) -> object:
            if isinstance(value, tuple) and any(isinstance(v, fx.Node) for v in value):
                return tuple(place.get(v) if isinstance(v, fx.Node) else v for v in value)
            return value

        self.rows = [
            (
                n.op,
                n.name,
                _by_name(n.target),
                fx.node.map_arg(n.args, lookup),
                fx.node.map_arg(n.kwargs, lookup),
                {k: freeze_meta(v) for k, v in n.meta.items()},
            )
            for n in graph.nodes
        ]

    def thaw(self) -> fx.Graph:
        """The graph again."""
        graph = fx.Graph()
        nodes: list[fx.Node] = []

        def thaw(value: object) -> Any:
            if isinstance(value, _Ref):
                return nodes[value.index]
            if isinstance(value, slice):
                return slice(thaw(value.start), thaw(value.stop), thaw(value.step))
            if isinstance(value, dict):
                return {k: thaw(v) for k, v in value.items()}
            if isinstance(value, (tuple, list)):
                parts = [thaw(v) for v in value]
                return parts if isinstance(value, list) else tuple(parts)
            return value

        for op, name, target, args, kwargs, _ in self.rows:
            called = getattr(F, target.name) if isinstance(target, _Functional) else target
            nodes.append(graph.create_node(op, called, thaw(args), thaw(kwargs), name=name))
        for node, row in zip(nodes, self.rows, strict=True):
            node.meta = {
                k: thaw(v) if isinstance(v, tuple) and any(isinstance(i, _Ref) for i in v) else v
                for k, v in row[5].items()
            }
        return graph
