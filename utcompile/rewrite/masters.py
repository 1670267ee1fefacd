"""`train:` parts in float32 on a base in half precision: the operations read them rounded to the base's dtype.

`y = OP(x; w.type_as(w0))`, w what trains and w0 the base's own value, so that a model that is cast or moved keeps its
sense. At the start it computes the base's numbers, bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import fx, nn

from utcompile.errors import UtcError
from utcompile.graph import Role, info, inserted, origin_of, owner_of, owner_path, set_parameter, state_at
from utcompile.rewrite.functional import to_function, to_module
from utcompile.tuners import HALVES

logger = logging.getLogger(__name__)


def raise_precision(graph: fx.Graph, root: nn.Module, originals: Mapping[str, str]) -> None:
    """Make what trains float32 where it is in half precision.

    Args:
        graph: changed in place: every operation reads `w.type_as(w0)`.
        root: what its targets name.
        originals: the name of each parameter that trains, and that of the base's own value of it.
    """
    halves = {n: root.get_parameter(n) for n in originals if root.get_parameter(n).dtype in HALVES}
    made: dict[int, nn.Parameter] = {}
    for name in _called_as_functions(graph, root, halves):
        old = halves[name]
        if id(old) not in made:
            made[id(old)] = nn.Parameter(old.detach().float(), requires_grad=True)
        set_parameter(root, name, made[id(old)])
        for node in [n for n in graph.nodes if n.op == "get_attr" and str(n.target) == name]:
            _rounded(graph, node, originals[name])


def _called_as_functions(graph: fx.Graph, root: nn.Module, halves: Mapping[str, nn.Parameter]) -> list[str]:
    """The names whose layers have been written as functions; the others stay as they are, with all that are tied."""
    stay: set[int] = set()
    for node in list(graph.nodes):
        path = str(node.target)
        inside = [n for n in halves if n.startswith(f"{path}.")] if node.op == "call_module" else []
        if not inside:
            continue
        try:
            if any(owner_path(n) != path for n in inside):
                raise UtcError(f"{path} is one node, with layers inside", code="tune/not-tunable")
            to_function(graph, node, root)
        except UtcError as error:
            stay.update(id(halves[n]) for n in inside)
            logger.warning("%s trains in the base's half precision: %s", ", ".join(inside), error.what)
    return [n for n, p in halves.items() if id(p) not in stay]


def _rounded(graph: fx.Graph, node: fx.Node, original: str) -> None:
    with graph.inserting_after(node):
        like = graph.get_attr(original)
    with graph.inserting_after(like):
        rounded = graph.call_method("type_as", (node, like))
    origin = origin_of(node)
    inserted(like, origin, state=True)
    inserted(rounded, origin, state=True, role=Role.MASTER, value=info(node).value)
    node.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not rounded)


def settle_precision(graph: fx.Graph, root: nn.Module) -> None:
    """Undo it: what trained has the base's dtype again, and layers that nothing else changed are called as such."""
    for node in [n for n in graph.nodes if info(n).role == Role.MASTER]:
        master, like = node.args
        assert isinstance(master, fx.Node) and isinstance(like, fx.Node)
        owner, attribute = owner_of(root, str(master.target))
        before, dtype = owner._parameters[attribute], state_at(root, str(like.target)).dtype
        if before is not None and before.dtype != dtype:
            rounded = nn.Parameter(before.detach().to(dtype), requires_grad=False)
            for other in root.modules():  # under all names of a tie
                other._parameters.update({k: rounded for k, p in other._parameters.items() if p is before})
        node.replace_all_uses_with(master)
        graph.erase_node(node)
        if not like.users:
            graph.erase_node(like)
    for node in [n for n in graph.nodes if info(n).module_call is not None]:
        read = node.all_input_nodes
        if not any(info(n).role in (Role.PARAMETER, Role.TUNER) for n in read) and info(node).role != Role.OPERATION:
            to_module(graph, node)
            for state in read:
                if state.op == "get_attr" and not state.users:
                    graph.erase_node(state)
