"""The facts about a node that are read most, each with the answer for a node that has none."""

from __future__ import annotations

from typing import cast

from torch import fx

from utcompile.graph.node_info import Origin, info
from utcompile.graph.value import Value


def value_of(node: fx.Node) -> Value | None:
    """The tensor that a node yields, or None where it yields no single tensor."""
    return info(node).value


def tensor(node: fx.Node) -> Value:
    """The tensor that a node is known to yield."""
    return cast(Value, info(node).value)


def origin_of(node: fx.Node) -> Origin:
    """The origin of a node; an empty one for nodes that no module made."""
    return info(node).origin or Origin()


def place_of(node: fx.Node) -> str:
    """The module path a node belongs to: the module it calls, or the one it runs in."""
    if node.op == "call_module":
        return str(node.target)
    return origin_of(node).path


def readers(node: fx.Node) -> list[fx.Node]:
    """The readers of a node's value, without the checks of a captured graph: these change nothing and yield nothing."""
    return [user for user in node.users if not info(user).check]


def describe(node: fx.Node) -> str:
    """`layer1.0.conv1 (resnet.py:105)`, for messages."""
    return f"{node.name} in {place_of(node) or 'the root module'} ({origin_of(node).source})"
