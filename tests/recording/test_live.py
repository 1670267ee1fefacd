"""Nodes by identity: forgotten with their values."""

from __future__ import annotations

import torch
from torch import fx

from utcompile.recording.live import LiveNodes


def test_a_value_is_forgotten_when_it_dies() -> None:
    nodes, node = LiveNodes(), fx.Graph().placeholder("x")
    value = torch.zeros(3)
    nodes.bind(value, node)
    assert nodes.get(value) is node and value in nodes
    del value
    # the same address, in all likelihood; whatever lives there now is another value
    assert not any(torch.zeros(3) in nodes for _ in range(100))


def test_views_share_a_number_and_no_storage_is_given_one_again() -> None:
    nodes, node = LiveNodes(), fx.Graph().placeholder("x")
    value = torch.zeros(3)
    first = nodes.bind(value, node)
    view = value[1:]
    assert nodes.bind(view, node) == first
    del value
    assert nodes.bind(view[:1], node) == first  # its storage lives on
    del view
    numbers = [nodes.bind(torch.zeros(3), node) for _ in range(100)]
    assert len({first, *numbers}) == 101


def test_an_object_stays_known() -> None:
    class Cache:
        pass

    nodes, node = LiveNodes(), fx.Graph().placeholder("x")
    kept = id(cache := Cache())
    nodes.bind(cache, node)
    del cache
    assert all(id(Cache()) != kept for _ in range(100))
