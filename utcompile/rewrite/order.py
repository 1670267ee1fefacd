"""Bring a graph's nodes into an order in which every value is made before it is read."""

from __future__ import annotations

import heapq
from itertools import pairwise

from torch import fx

from utcompile.errors import UtcError
from utcompile.graph import describe


def sort_graph(graph: fx.Graph) -> None:
    """A stable topological sort in place; a graph that is in order already is left alone.

    Where writes into shared memory remain, what was recorded keeps its order and only new nodes move.

    Raises:
        UtcError: two tuners read what the other changes.
    """
    nodes = list(graph.nodes)
    position = {n: i for i, n in enumerate(nodes)}
    if all(position[source] < position[n] for n in nodes for source in n.all_input_nodes):
        return
    before: dict[fx.Node, set[fx.Node]] = {n: set(n.all_input_nodes) for n in nodes}
    if any(n.meta.get("mutates") for n in nodes):
        recorded = [n for n in nodes if "site" not in n.meta]
        for a, b in pairwise(recorded):
            before[b].add(a)
    after: dict[fx.Node, list[fx.Node]] = {n: [] for n in nodes}
    for node, sources in before.items():
        for source in sources:
            after[source].append(node)
    waiting = {n: len(s) for n, s in before.items()}
    ready = [(position[n], n.name, n) for n in nodes if not waiting[n]]
    heapq.heapify(ready)
    ordered: list[fx.Node] = []
    while ready:
        _, _, node = heapq.heappop(ready)
        ordered.append(node)
        for reader in after[node]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, (position[reader], reader.name, reader))
    if len(ordered) < len(nodes):
        stuck = next(n for n in nodes if waiting[n] and "site" in n.meta)
        raise UtcError(
            f"site {stuck.meta['site']} reads what it changes, by way of another tuner",
            where=describe(stuck),
            fix="narrow one of the rules with `where:`",
        )
    anchor = ordered[0]
    for node in ordered[1:]:
        anchor.append(node)
        anchor = node
