"""On request, layers of a half-precision model compute in float32: where rounding would lose what a tuner learned.

`y = layer(x)` becomes `y = layer(x.type_as(w)).type_as(x)`, with the layer's parameters in float32.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import fx

from utcompile.fold.absorb import of_parameters
from utcompile.fold.layers import Unfoldable, Work
from utcompile.graph import Value, info, inserted, origin_of, owner_path, value_of


def compute_in_float32(work: Work, names: Collection[str], results: Sequence[fx.Node]) -> list[fx.Node]:
    """Let every operation that reads one of these parameters compute in float32, between casts.

    Args:
        results: what a site's fold yields.

    Returns:
        The same, behind the casts.

    Raises:
        UtcError: an operation yields several values.
    """
    behind: dict[fx.Node, fx.Node] = {}
    for node in _readers(work, names):
        read = _parameters_of(work, node)
        for name in read:
            work.in_float32(name)
        if not info(node).float32:
            behind[node] = _between_casts(work, node, read[0])
    return [behind.get(n, n) for n in results]


def _readers(work: Work, names: Collection[str]) -> list[fx.Node]:
    owners = {owner_path(n) for n in names}
    found = [n for n in work.graph.nodes if n.op == "call_module" and str(n.target) in owners]
    stack = [n for n in work.graph.nodes if n.op == "get_attr" and str(n.target) in names]
    while stack:
        for user in stack.pop().users:
            (stack if of_parameters(user) else found).append(user)
    found = list(dict.fromkeys(found))
    if several := next((n for n in found if value_of(n) is None), None):
        raise Unfoldable(f"{several.name} yields several values, and cannot stand between casts")
    return found


def _parameters_of(work: Work, node: fx.Node) -> list[str]:
    """The floating-point parameters and buffers that an operation reads; its weight first."""
    if node.op == "call_module":
        leaf, path = work.root.get_submodule(str(node.target)), str(node.target)
        every = [*leaf.named_parameters(), *leaf.named_buffers()]
        return [f"{path}.{n}" for n, t in every if t.is_floating_point()]
    found, stack = [], [n for n in node.all_input_nodes if of_parameters(n)]
    while stack:
        state = stack.pop(0)
        if state.op == "get_attr" and work.state(str(state.target)).is_floating_point():
            found.append(str(state.target))
        stack += state.all_input_nodes
    return list(dict.fromkeys(found))


def _between_casts(work: Work, node: fx.Node, weight: str) -> fx.Node:
    value = value_of(node)
    assert value is not None
    read = [n for n in node.all_input_nodes if not of_parameters(n) and _is_floating(n)]
    with work.graph.inserting_before(node):
        like = work.graph.get_attr(weight)
        for source in read:
            cast = work.graph.call_method("type_as", (source, like))
            inserted(cast, origin_of(node), value=_in(source, torch.float32))
            node.replace_input_with(source, cast)
    inserted(like, origin_of(node), state=True)
    with work.graph.inserting_after(node):
        # an embedding reads integers
        if read:
            back = work.graph.call_method("type_as", (node, read[0]))
        else:
            back = work.graph.call_method("to", (node, work.home[0]))
            work.graph.erase_node(like)
    node.replace_all_uses_with(back, delete_user_cb=lambda user: user is not back)
    inserted(back, origin_of(node), value=value)
    info(node).float32, info(node).value = True, replace(value, dtype=torch.float32)
    return back


def _is_floating(node: fx.Node) -> bool:
    value = value_of(node)
    return value is not None and value.dtype.is_floating_point


def _in(node: fx.Node, dtype: torch.dtype) -> Value | None:
    value = value_of(node)
    return None if value is None else replace(value, dtype=dtype)
