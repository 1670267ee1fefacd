"""`GraphView`: the facts about a captured graph, read once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property

import networkx as nx
from torch import fx, nn

from utcompile.graph.classes import CLASSES
from utcompile.graph.composites import composites
from utcompile.graph.layout import Layout, layouts
from utcompile.graph.meta import origin_of, tensor, value_of
from utcompile.graph.node_info import Frame, info
from utcompile.graph.operations import Operation, operation
from utcompile.graph.state import find_state
from utcompile.graph.walk import ancestors

_WIDEST = 16  # layouts of one value that are looked at


class GraphView:
    """A read-only index over a graph: canonical operations, order, channel axes, dependence.

    Args:
        graph: a graph whose nodes carry `value` and `origin`, as capture makes it.
        module: the module that its targets refer to.
    """

    def __init__(self, graph: fx.Graph, module: nn.Module) -> None:
        self.module = module
        self.nodes = list(graph.nodes)
        self.position = {n: i for i, n in enumerate(self.nodes)}
        self.operations: dict[fx.Node, Operation] = {}
        for node in self.nodes:
            op = self.operations[node] = operation(node, module)
            if "weight" in op.parameters:
                info(node).weight_shape = self._shape(op.parameters["weight"])
        self.operations |= composites(self.nodes, self.operations, module)
        self._frames: dict[fx.Node, tuple[Frame, ...]] = {}

    def rewritten(self) -> GraphView:
        """The graph indexed again after changes that kept every value's layout and all operations.

        The layout of added nodes is unknown. Facts that nothing has read yet are computed for the new graph.
        """
        found = GraphView(self.nodes[0].graph, self.module)
        if {"layouts", "classes"} <= self.__dict__.keys():
            found.layouts = {n: self.layouts.get(n) for n in found.nodes}
            found.classes = {n: self.classes.get(n) or frozenset([op.name]) for n, op in found.operations.items()}
        return found

    def _shape(self, name: str) -> tuple[int, ...]:
        found = find_state(self.module, name)
        return tuple(found.shape) if found is not None else ()

    @cached_property
    def layouts(self) -> dict[fx.Node, Layout | None]:
        """The layout of every value, None where it is unknown."""
        return layouts(self.nodes, self.operations, lambda node: operation(node, self.module))

    @cached_property
    def channel_axis(self) -> dict[fx.Node, int | None]:
        """The channel axis of every tensor, None where it is unknown."""
        return {n: layout.axis if layout else None for n, layout in self.layouts.items()}

    @cached_property
    def classes(self) -> dict[fx.Node, frozenset[str]]:
        """The operation classes of every node, its canonical name among them."""
        found = {
            n: frozenset([op.name, *(c for c, is_one in CLASSES.items() if is_one(n, op))])
            for n, op in self.operations.items()
        }
        for node, names in found.items():
            if "pointwise" in names and self._mixes_tokens(node):
                found[node] = (names - {"pointwise"}) | {"tokenwise"}
            elif "norm" in names and not self._is_stream(node, found):
                found[node] = names | {"branch_norm"}
        return found

    def _is_stream(self, node: fx.Node, classes: Mapping[fx.Node, frozenset[str]]) -> bool:
        """Whether something computed from a value is added to it, so that a residual branch starts from it."""
        frontier = [node]
        for current in frontier:
            for reader in current.users:
                inputs = self.operations[reader].inputs
                if "add" in classes[reader] and len(inputs) == 2 and tensor(inputs[0]).shape == tensor(inputs[1]).shape:
                    other = inputs[1] if inputs[0] is current else inputs[0]
                    if other is not current and self.depends(other, node):
                        return True
                elif "layout" in classes[reader] and len(frontier) < _WIDEST:
                    frontier.append(reader)
        return False

    def _mixes_tokens(self, node: fx.Node) -> bool:
        """Whether a linear or 1×1 convolution runs along another axis than its input's channels: a Mixer's."""
        op = self.operations[node]
        if not op.inputs or (axis := self.channel_axis.get(op.inputs[0])) is None:
            return False
        return axis != (1 if "conv" in op.name else tensor(op.inputs[0]).rank - 1)

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The module's parameters by name, tied ones under each of theirs."""
        return dict(self.module.named_parameters(remove_duplicate=False))

    @cached_property
    def names_of(self) -> dict[nn.Parameter, tuple[str, ...]]:
        """The names of each parameter."""
        found: dict[nn.Parameter, list[str]] = defaultdict(list)
        for name, parameter in self.parameters.items():
            found[parameter].append(name)
        return {parameter: tuple(names) for parameter, names in found.items()}

    @cached_property
    def parameters_read(self) -> frozenset[str]:
        """The names under which operations read parameters and buffers."""
        return frozenset(name for op in self.operations.values() for name in op.parameters.values())

    @cached_property
    def by_class(self) -> dict[str, list[fx.Node]]:
        """Nodes by class or canonical name, in graph order."""
        found: dict[str, list[fx.Node]] = defaultdict(list)
        for node, names in self.classes.items():
            for name in names:
                found[name].append(node)
        return found

    def channels(self, node: fx.Node) -> int | None:
        """The number of channels of a tensor, where its axis is known and its size fixed."""
        axis = self.channel_axis.get(node)
        size = tensor(node).shape[axis] if axis is not None else None
        return size if isinstance(size, int) else None

    def sources(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The tensors that a node reads; a part of a split reads what is split."""
        op = self.operations[node]
        if op.name == "getitem" and not op.inputs and isinstance(node.args[0], fx.Node):
            return self.operations[node.args[0]].inputs
        return op.inputs

    def without_layout(self, node: fx.Node) -> fx.Node:
        """The value that a chain of layout operations moves about."""
        return self._chains[node][-1]

    def layout_chain(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """A node, then what it is a layout of, and so on up to a node that is no layout operation."""
        return self._chains[node]

    @cached_property
    def _chains(self) -> dict[fx.Node, tuple[fx.Node, ...]]:
        found: dict[fx.Node, tuple[fx.Node, ...]] = {}
        for node in self.nodes:
            further = found[self.operations[node].inputs[0]] if "layout" in self.classes[node] else ()
            found[node] = (node, *further)
        return found

    def frames(self, node: fx.Node) -> tuple[Frame, ...]:
        """The module calls around a node, outermost first; a leaf module's own call among them."""
        if node not in self._frames:
            frames = origin_of(node).scope
            if node.op == "call_module":
                leaf = self.module.get_submodule(str(node.target))
                frames = (*frames, Frame(str(node.target), type(leaf).__name__))
            self._frames[node] = frames
        return self._frames[node]

    def depends(self, node: fx.Node, on: fx.Node) -> bool:
        """Whether a node is computed from another (or is that node)."""
        floor = self.position[on]
        return on in ancestors([node], until=lambda n: self.position[n] <= floor)

    @cached_property
    def mutations(self) -> dict[int, list[fx.Node]]:
        """Storage number to the nodes that write into it: the barriers that capture could not remove."""
        found: dict[int, list[fx.Node]] = defaultdict(list)
        for node in self.nodes:
            for written in info(node).mutates:
                value = value_of(written)
                if value is not None:
                    found[value.storage].append(node)
        return found


def dependence_graph(graph: fx.Graph) -> nx.DiGraph:
    """The data flow of a graph as a networkx graph: an edge from each node to each of its readers."""
    result = nx.DiGraph()
    result.add_nodes_from(graph.nodes)
    result.add_edges_from((n, u) for n in graph.nodes for u in n.users)
    return result
