"""A tuned graph as `torch.compile` sees it: what the plan does not keep is in checkpoints, which the partitioner obeys.

By itself the partitioner keeps second weights, and the results of norms and activations. A node of a checkpoint is
marked as one to be computed again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

from utcompile.graph import UtcGraphModule, copy_graph
from utcompile.graph.codegen import quote_keywords
from utcompile.memory.planned import Planner
from utcompile.memory.recipe import Recipe
from utcompile.memory.segments import recompute
from utcompile.tuners import recomputed


def marked_forward(tuned: UtcGraphModule, again: tuple[tuple[str, str], ...]) -> Callable[..., object] | None:
    """The `forward` that torch compiles, of a module and its inputs; None where the plan changes nothing.

    Args:
        tuned: a tuned module.
        again: the units that run again in backward: the names of their first and last nodes.
    """
    graph = copy_graph(tuned.graph)
    inside = _inside(graph, again)
    count = _mark_values(graph, tuned, inside) + _mark_weights(graph, inside)
    if not count and not again:
        return None
    recompute(graph, tuned, again)
    quote_keywords(graph)
    forward: Callable[..., object] = type(fx.GraphModule(tuned, graph)).forward
    return forward


def _inside(graph: fx.Graph, again: tuple[tuple[str, str], ...]) -> set[str]:
    """The names of the nodes of units, which run again as a whole."""
    found: set[str] = set()
    ends = dict(again)
    last = None
    for node in graph.nodes:
        last = ends.get(node.name, last)
        if last is not None:
            found.add(node.name)
        if node.name == last:
            last = None
    return found


def _mark_values(graph: fx.Graph, tuned: UtcGraphModule, inside: set[str]) -> int:
    """Let cheap values be made in checkpoints, of what is kept anyway."""
    every = Planner(graph, tuned, tuned.follows_mode).remade_values()
    found = [(value, recipe, starts) for value, _, recipe, starts in every if value.name not in inside]
    for value, recipe, starts in found:
        with graph.inserting_before(value):
            call = graph.call_function(_made_again(recipe), tuple(starts))
        call.meta = value.meta
        value.replace_all_uses_with(call)
        graph.erase_node(value)
    return len(found)


def _mark_weights(graph: fx.Graph, inside: set[str]) -> int:
    """Let changed weights be made in checkpoints."""
    weights = {
        n
        for node in graph.nodes
        if node.target is recomputed and node.name not in inside
        for n in node.all_input_nodes
        if n.op == "call_module" and all(user.target is recomputed for user in n.users) and n.name not in inside
    }
    for node in weights:
        with graph.inserting_before(node):
            tuner = graph.get_attr(str(node.target))
        node.op, node.target, node.args = "call_function", _called_again, (tuner, *node.args)
    return len(weights)


def _called_again(module: nn.Module, *given: torch.Tensor) -> object:
    return checkpoint(module, *given, use_reentrant=False)


def _made_again(recipe: Recipe) -> Callable[..., object]:
    def made_again(*given: object) -> object:
        return checkpoint(lambda *values: recipe.make(values), *given, use_reentrant=False)

    made_again.__module__ = __name__
    made_again.__qualname__ = "made_again"
    return made_again
