"""Queries that are a part of packed projections: kept alone, where nothing else of the packed value is kept.

A learned prefix is put before keys and values, which makes new tensors of them. The queries stay a view, so that
attention keeps all of queries, keys and values for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import fx

from utcompile.graph import info, tensor, value_of
from utcompile.memory.reading import Reading
from utcompile.ops import Axes, having
from utcompile.tuners import Prefix

_ATTENTION = having(Axes.SDPA)


def lone_queries(reading: Reading) -> Iterator[tuple[fx.Node, fx.Node, fx.Node]]:
    """Each attention, its queries, and the larger value that they are a part of and that only they keep."""
    for node in reading.operations:
        if reading.operations[node].name not in _ATTENTION or node in reading.regions or node not in reading.trains:
            continue
        queries = node.args[0] if node.args else None
        if not isinstance(queries, fx.Node) or value_of(queries) is None:
            continue
        packed, others = _whole(queries), [n for n in node.all_input_nodes if n is not queries and value_of(n)]
        shared = node.args.count(queries) > 1 or any(tensor(n).storage == tensor(queries).storage for n in others)
        if packed is not None and not shared and set(_keepers(reading, packed)) == {node}:
            yield node, queries, packed


def _whole(queries: fx.Node) -> fx.Node | None:
    """The value whose memory the queries share, if it is larger."""
    found, storage = None, tensor(queries).storage
    above = [queries]
    while above:
        node = above.pop()
        for source in node.all_input_nodes:
            if value_of(source) is None:
                above += [source] if info(source).value is not None or source.op == "call_method" else []
            elif tensor(source).storage == storage:
                above.append(source)
                found = source
    return found if found is not None and _size(found) > _size(queries) else None


def _size(node: fx.Node) -> int:
    return prod(tensor(node).sizes(8))


def _keepers(reading: Reading, packed: fx.Node) -> Iterator[fx.Node]:
    """What may keep a value: a prefix reads shapes alone, and what joins tensors keeps none of them."""
    joins = {n for n in reading.keepers(packed) if reading.operations[n].name == "cat"}
    return (k for k in reading.keepers(packed) - joins if type(reading.tuner(k)) is not Prefix)


def own_memory(queries: torch.Tensor) -> torch.Tensor:
    """A copy without gaps, for a call that keeps it."""
    return queries.clone(memory_format=torch.contiguous_format)
