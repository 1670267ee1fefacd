"""The operations that weight tuners change, and what is computed from parameters alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from utcompile.folding.folding import Folding, Unfoldable
from utcompile.folding.site import untuned
from utcompile.graph import Role, info, is_state, operand, owner_path, value_of
from utcompile.rewrite import TunedWeight

BETWEEN = (Role.PARAMETER, Role.TUNER)  # roles of nodes that hand a changed parameter on


def is_quantised(place: TunedWeight) -> bool:
    """Whether a tuned weight is no parameter of floating-point numbers."""
    return not place.names and "weight" in place.tunes


def operations_of(nodes: Mapping[Role, list[fx.Node]]) -> list[fx.Node]:
    """The operations that a weight site changes, in graph order."""
    if Role.BRANCH in nodes:
        return [n for n in map(untuned, nodes[Role.BRANCH]) if n is not None]
    found: dict[fx.Node, None] = {}
    stack = list(nodes[Role.TUNER])
    while stack:
        for user in stack.pop().users:
            data = any(_is_data(n) for n in user.all_input_nodes)
            if info(user).role in BETWEEN or not data:
                stack.append(user)
            else:
                found[user] = None
    return sorted(found)


def _is_data(node: fx.Node) -> bool:
    return (value_of(node) is not None or info(node).role == Role.PADDING) and not of_parameters(node)


def of_parameters(node: fx.Node) -> bool:
    """Whether a node is computed from parameters and weight tuners alone."""
    if is_state(node):
        return True
    return info(node).role in BETWEEN and all(of_parameters(n) for n in node.all_input_nodes)


def check_readers(model: Folding, name: str, mine: set[fx.Node]) -> None:
    """Every reader of a parameter must be part of the site; a tie to another name is cut by the new parameter."""
    owner, weight = owner_path(name), model.raw(name)
    for node in model.graph.nodes:
        reads = node.op == "call_module" and str(node.target) == owner
        reads |= node.op == "get_attr" and str(node.target) == name and not set(node.users) <= mine
        if reads and node not in mine:
            raise Unfoldable(f"the weight {name} is shared with {node.name}, which is not tuned")
        if node not in model.rescaling:
            model.rescaling[node] = _has_max_norm(model, node)
        if model.rescaling[node] and _table_of(model, node) is weight:
            raise Unfoldable(f"{node.name} writes into the weight {name} in each call (max_norm)")


def _has_max_norm(model: Folding, node: fx.Node) -> bool:
    """Whether a lookup scales its table down in place, in each call."""
    if node.op == "call_module":
        return getattr(model.root.get_submodule(str(node.target)), "max_norm", None) is not None
    return operand(node, "max_norm") is not None


def _table_of(model: Folding, node: fx.Node) -> torch.Tensor | None:
    if node.op == "call_module":
        return model.root.get_submodule(str(node.target))._parameters.get("weight")
    table = operand(node, "weight")
    return model.raw(str(table.target)) if isinstance(table, fx.Node) and table.op == "get_attr" else None
