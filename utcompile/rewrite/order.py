"""Bring a graph's nodes into an order in which every value is made before it is read."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
from torch import fx

from utcompile.errors import UtcError
from utcompile.graph import dependence_graph, describe, info


def sort_graph(graph: fx.Graph) -> None:
    """A stable topological sort in place; a graph that is in order already is left alone.

    Where writes into shared memory or regions (`no_grad`, autocast) remain, what was recorded keeps its order and only
    new nodes move.

    Raises:
        UtcError: two tuners read what the other changes.
    """
    nodes = list(graph.nodes)
    position = {n: i for i, n in enumerate(nodes)}
    if all(position[source] < position[n] for n in nodes for source in n.all_input_nodes):
        return
    flow = dependence_graph(graph)
    if any(info(n).mutates or info(n).region for n in nodes):
        flow.add_edges_from(pairwise(n for n in nodes if info(n).site is None))
    try:
        ordered = list(nx.lexicographical_topological_sort(flow, key=position.__getitem__))
    except nx.NetworkXUnfeasible:
        stuck = next(a for a, _ in nx.find_cycle(flow) if info(a).site is not None)
        raise UtcError(
            f"site {info(stuck).site} reads what it changes, by way of another tuner",
            where=describe(stuck),
            fix="narrow one of the rules with `where:`",
            code="tune/order",
        ) from None
    for before, node in pairwise(ordered):
        before.append(node)
