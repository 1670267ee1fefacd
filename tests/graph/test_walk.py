"""Walks over graphs, state by dotted names, and one node evaluated: what the rooms above build on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import fx, nn

from utcompile.graph import (
    Role,
    ancestors,
    between,
    copy_graph,
    descendants,
    drop_state,
    every_name,
    find_state,
    info,
    replace_state,
    run_node,
    state_at,
)


@pytest.fixture
def nodes() -> dict[str, fx.Node]:
    """x -> a -> b -> d, x -> c -> d: a diamond with one long side."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    a = graph.call_method("neg", (x,))
    b = graph.call_method("abs", (a,))
    c = graph.call_method("exp", (x,))
    d = graph.call_method("add", (b, c))
    return {"graph": graph, "x": x, "a": a, "b": b, "c": c, "d": d}


def test_a_walk_yields_each_node_once_and_stops_where_it_is_told(nodes: dict[str, fx.Node]) -> None:
    x, a, b, c, d = (nodes[k] for k in "xabcd")
    above = list(ancestors([d]))
    assert above[0] is d and sorted(above) == sorted([x, a, b, c, d])
    assert set(ancestors([d], until=lambda n: n is a)) == {d, b, c, a, x}  # x still by way of c
    assert set(ancestors([b, b], until=lambda n: n is a)) == {b, a}
    assert set(descendants([a])) == {a, b, d} and list(descendants([d])) == [d]
    assert between(x, d) == {a, b, c} and between(a, d) == {b} and between(b, c) == set()


def test_the_facts_of_a_copied_graph_are_its_own(nodes: dict[str, fx.Node]) -> None:
    node = nodes["b"]
    info(node).role, info(node).mutates = Role.SUM, (nodes["a"],)
    graph = copy_graph(node.graph)
    twin = next(n for n in graph.nodes if n.name == node.name)
    assert info(twin).role is Role.SUM and info(twin).mutates[0].graph is graph
    del info(twin).role, info(twin).site
    assert info(twin).role is None and info(node).role is Role.SUM and info(node).site is None
    with pytest.raises(AttributeError):
        info(node).rolle = Role.SUM  # type: ignore[attr-defined]


def test_state_is_found_replaced_and_dropped_under_each_of_its_names() -> None:
    root = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    root.add_module("twin", root[0])
    assert state_at(root, "twin.weight") is root[0].weight and len(dict(every_name(root))) == 9
    assert find_state(root, "0.gamma") is None
    with pytest.raises(AttributeError, match=r"0\.gamma"):
        state_at(root, "0.gamma")
    replace_state(root, "1.running_mean", torch.ones(3))
    replace_state(root, "0.weight", torch.zeros(3, 3))
    assert not isinstance(state_at(root, "1.running_mean"), nn.Parameter)
    assert not state_at(root, "twin.weight").any() and not root[0].weight.requires_grad
    drop_state(root, ["0.weight", "0.bias"])
    assert "0" not in root._modules and list(root.twin.parameters()) == []


def test_a_node_is_run_with_cast_state_and_leaves_the_module_as_it_was() -> None:
    table = nn.Embedding(4, 2, max_norm=0.1)
    graph = fx.Graph()
    ids = graph.placeholder("ids")
    node = graph.call_module("table", (ids,))
    root = nn.Module()
    root.table = table
    before = copy.deepcopy(table.weight)
    found = run_node(root, node, lambda n: torch.tensor([0, 3]), lambda name, t: t.double())
    assert found.dtype == torch.float64 and found.norm(dim=1).max() <= 0.1 + 1e-6
    assert torch.equal(table.weight, before)
