"""A graph cut into regions: one graph for the nodes of each, and one that calls them.

What a region reads from outside is an input of its graph, and what others read of it is an output: activations, sizes,
masks, the state of a chain. Parameters and modules of a region are read in it alone.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import networkx as nx
from torch import fx, nn

from utcompile.errors import UtcError
from utcompile.graph import describe, info, origin_of

_Group = str | fx.Node  # the path of a region, or a node outside of all


@dataclass(frozen=True)
class Split:
    """A graph and its regions.

    Attributes:
        outer: calls each region as a module at its path.
        inner: the regions' graphs by path; targets are those inside the region.
        moved: modules outside of a region that it alone uses (tuners, layers without parameters), by their path: the
            path of the region, and the name there.
    """

    outer: fx.Graph
    inner: Mapping[str, fx.Graph]
    moved: Mapping[str, tuple[str, str]]


def split_graph(graph: fx.Graph, root: nn.Module, regions: Sequence[str]) -> Split:
    """Cut a graph.

    Args:
        graph: of `root`; it stays as it is.
        root: what the graph's targets name.
        regions: module paths, none inside another.

    Raises:
        UtcError: a region shares parameters, writes into what others read, or is left and entered again.
    """
    return _Cut(graph, root, regions).made()


@dataclass
class _Cut:
    graph: fx.Graph
    root: nn.Module
    regions: Sequence[str]
    groups: dict[fx.Node, _Group] = field(default_factory=dict)
    moved: dict[str, tuple[str, str]] = field(default_factory=dict)

    def made(self) -> Split:
        for node in self.graph.nodes:
            self.groups[node] = self._group(node)
        self._move_modules()
        self._check_writes()
        for node in self.graph.nodes:
            if node.op == "get_attr":
                self._settle_state(node)
        return self._written(self._order())

    def _group(self, node: fx.Node) -> _Group:
        if node.op in ("placeholder", "output", "get_attr"):
            return node
        paths = [frame.path for frame in origin_of(node).scope]
        return next((path for path in paths if path in self.regions), node)

    def _home(self, target: str) -> str | None:
        """The region that a parameter or module belongs to."""
        for region in self.regions:
            if target.startswith(f"{region}."):
                return region
        return next(
            (path for name, (path, _) in self.moved.items() if target == name or target.startswith(f"{name}.")), None
        )

    def _move_modules(self) -> None:
        """Find the tuners, and the layers without parameters, that one region alone uses."""
        users: dict[str, dict[_Group, fx.Node]] = defaultdict(dict)
        for node in self.graph.nodes:
            target = str(node.target)
            if node.op == "call_module" and not target.startswith("tuners."):
                users[target][self.groups[node]] = node
            elif node.op in ("call_module", "get_attr") and target.startswith("tuners."):
                for reader in [node] if node.op == "call_module" else node.users:
                    users[".".join(target.split(".")[:2])][self.groups[reader]] = reader
        for name, groups in users.items():
            home = next((r for r in self.regions if name.startswith(f"{r}.")), None)
            inside = [g for g in groups if isinstance(g, str)]
            if home is None and not inside:
                continue
            if home is not None and set(groups) == {home}:
                continue
            has_parameters = any(True for _ in self.root.get_submodule(name).parameters())
            if home is None and len(inside) == len(groups) == 1:
                place = f"{'tuners' if name.startswith('tuners.') else 'shared'}.{name.rpartition('.')[2]}"
                self.moved[name] = (inside[0], place if name.startswith("tuners.") else name.replace(".", "_"))
            elif has_parameters:
                raise self._shared(name, [*groups], next(iter(groups.values())))

    def _check_writes(self) -> None:
        for node in self.graph.nodes:
            for written in info(node).mutates:
                if self.groups[node] != self.groups[written] and written.op != "placeholder":
                    raise UtcError(
                        f"the region {self._said(self.groups[node])} writes into memory that is read outside of it",
                        where=describe(node),
                        fix="name regions that contain both, or the blocks around them",
                        code="parts/region",
                    )

    def _settle_state(self, node: fx.Node) -> None:
        """A region's parameter is read in the region; another one is read outside, and given to it as a value."""
        home = self._home(str(node.target))
        readers = {self.groups[user] for user in node.users}
        if home is not None:
            if readers - {home}:
                raise self._shared(str(node.target), [home, *(readers - {home})], node)
            self.groups[node] = home

    def _shared(self, name: str, groups: Sequence[_Group], node: fx.Node) -> UtcError:
        said = [self._said(group) for group in dict.fromkeys(groups)]
        return UtcError(
            f"{name} is used in several regions: {', '.join(said[:3])}",
            where=describe(node),
            why="each region is sharded, or run again, with its own parameters alone",
            fix="name one region that contains all uses; or leave it out of the regions",
            code="parts/shared",
        )

    def _said(self, group: _Group) -> str:
        return group if isinstance(group, str) else f"{origin_of(group).path or '(root)'}, outside of the regions"

    def _order(self) -> list[_Group]:
        position = {node: i for i, node in enumerate(self.graph.nodes)}
        first: dict[_Group, int] = {}
        for node, group in self.groups.items():
            first.setdefault(group, position[node])
        flow = nx.DiGraph()
        flow.add_nodes_from(first)
        for node in self.graph.nodes:
            flow.add_edges_from(
                (self.groups[source], self.groups[node])
                for source in node.all_input_nodes
                if self.groups[source] != self.groups[node]
            )
        if any(info(n).mutates or info(n).region for n in self.graph.nodes):  # what was recorded keeps its order
            flow.add_edges_from(pairwise(sorted(first, key=first.__getitem__)))
        try:
            return list(nx.lexicographical_topological_sort(flow, key=first.__getitem__))
        except nx.NetworkXUnfeasible:
            cycle = [a for a, *_ in nx.find_cycle(flow)]
        region = next(group for group in cycle if isinstance(group, str))
        between = next((group for group in cycle if group != region), region)
        raise UtcError(
            f"the region {region} is no single call: it is left and entered again",
            where=f"by way of {self._said(between)}",
            why="its module is called more than once, or a tuner outside of it lies between its operations",
            fix="name the module around it, or leave this one out",
            code="parts/region",
        )

    def _written(self, order: Sequence[_Group]) -> Split:
        members: dict[str, list[fx.Node]] = defaultdict(list)
        for node in self.graph.nodes:
            group = self.groups[node]
            if isinstance(group, str):
                members[group].append(node)
        outer, copies, inner = fx.Graph(), dict[fx.Node, fx.Node](), dict[str, fx.Graph]()
        for group in order:
            if isinstance(group, str):
                inner[group] = self._region(group, members[group], outer, copies)
            elif group.op == "output":
                outer.output(fx.node.map_arg(group.args[0], copies.__getitem__)).meta = dict(group.meta)
            else:
                copies[group] = outer.node_copy(group, copies.__getitem__)
                copies[group].meta = dict(group.meta)
        _map_meta(outer, copies)
        outer.lint()
        return Split(outer, inner, self.moved)

    def _region(self, path: str, nodes: list[fx.Node], outer: fx.Graph, copies: dict[fx.Node, fx.Node]) -> fx.Graph:
        """The graph of one region; its call is added to the outer one."""
        inside = set(nodes)
        given = list(dict.fromkeys(s for n in nodes for s in n.all_input_nodes if s not in inside))
        yielded = [n for n in nodes if any(u not in inside for u in n.users)]
        graph, own = fx.Graph(), dict[fx.Node, fx.Node]()
        for source in given:
            own[source] = graph.create_node("placeholder", source.name, name=source.name)
            info(own[source]).value = info(source).value
        for node in nodes:
            own[node] = graph.node_copy(node, own.__getitem__)
            own[node].meta = dict(node.meta)
            if node.op in ("get_attr", "call_module"):
                own[node].target = self._inside(str(node.target), path)
        graph.output(own[yielded[0]] if len(yielded) == 1 else tuple(own[n] for n in yielded))
        _map_meta(graph, own)
        graph.lint()
        call = outer.call_module(path, tuple(copies[source] for source in given))
        if len(yielded) == 1:
            copies[yielded[0]] = call
            call.meta = {k: yielded[0].meta[k] for k in ("value", "origin") if k in yielded[0].meta}
        else:
            for i, node in enumerate(yielded):
                copies[node] = outer.create_node("call_function", operator.getitem, (call, i), name=node.name)
                copies[node].meta = {k: node.meta[k] for k in ("value", "origin") if k in node.meta}
        return graph

    def _inside(self, target: str, region: str) -> str:
        for name, (path, place) in self.moved.items():
            if path == region and (target == name or target.startswith(f"{name}.")):
                return place + target[len(name) :]
        return target[len(region) + 1 :]


def _map_meta(graph: fx.Graph, copies: Mapping[fx.Node, fx.Node]) -> None:
    """Nodes that facts refer to follow into the copy; those of another graph are forgotten."""
    known = set(graph.nodes)
    for node in graph.nodes:
        for key, value in list(node.meta.items()):
            if isinstance(value, tuple) and any(isinstance(v, fx.Node) for v in value):
                found = [copies.get(v) if isinstance(v, fx.Node) else v for v in value]
                node.meta[key] = tuple(v if v in known else None for v in found)
