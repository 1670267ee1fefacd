"""`weight: h`: an operation with other parameters.

1. Branch: the operation runs as it is, and `y' = T(x, y)` adds the tuner's share.
2. Reparametrised: `OP(x; T(W))`. A leaf module's call becomes a function's; a weight that the model computes first
   (slices, weight standardisation) is computed again from `T(W)`.
3. A parameter itself: all its readers read `T(W)`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import fx, nn

from utcompile.graph import Role, info, inserted, is_state, set_operand
from utcompile.matching import WeightPlace
from utcompile.rewrite.functional import recurrent, to_function
from utcompile.rewrite.writer import Inserted, Writer
from utcompile.tuners import HALVES, recomputed
from utcompile.tuners.gradients import FUNCTIONS

# what saves a tuned weight for backward, and is called so that it does not
_RECOMPUTED: Mapping[object, str] = {
    **{function: name for name, function in FUNCTIONS.items()},
    operator.matmul: "matmul",
}
_SPELLED = 4  # nodes between the last one of a spelled-out norm and the one that reads its weight: a sum, casts


def frozen_parameters(place: WeightPlace, root: nn.Module) -> tuple[torch.Tensor | None, ...]:
    """The frozen parameters that a tuner changes, in the order of its roles."""
    return tuple(root.get_parameter(n).detach() if n is not None else None for n in place.tunes.values())


def reparametrise(writer: Writer, place: WeightPlace, site: Inserted) -> None:
    """Let the operations of a site read what its tuner makes of their parameters.

    Args:
        writer: of the graph, which is changed in place; the operations keep their nodes.
        place: the operations, in graph order: one, or the calls of a shared module.
        site: the tuner.
    """
    graph = writer.graph
    targets = [writer.mapping[t] for t in place.targets]
    made = _changed_parameters(graph, place, site, targets[0])
    for node in targets:
        if node.op == "get_attr":
            _replace_everywhere(node, made["weight"])
            continue
        if node.op == "call_module":
            to_function(graph, node, writer.root)
        for role, parameter in place.tunes.items():
            if parameter is not None:
                _replace(graph, _reader(node, parameter), parameter, made[role])
            elif role in made:
                _add_bias(node, _like_weight(graph, node, made[role], place))
        _call_recomputed(node, place)
        info(node).role = Role.OPERATION


def _changed_parameters(graph: fx.Graph, place: WeightPlace, site: Inserted, first: fx.Node) -> dict[str, fx.Node]:
    """What the tuner yields by role; a role stays out where the operation will have no such parameter."""
    origin = info(first).origin if info(first).origin is not None else info(place.targets[0]).origin
    spot = graph.inserting_after(first) if first.op == "get_attr" else graph.inserting_before(first)
    with spot:
        given: list[fx.Node | None] = []
        for parameter in place.tunes.values():
            read = None
            if parameter is not None:
                read = first if first.op == "get_attr" else graph.get_attr(parameter)
                inserted(read, origin, state=True)
            given.append(read)
        tuner = graph.call_module(site.name, tuple(given))
    inserted(tuner, origin, role=Role.TUNER, site=site.id)
    if len(given) == 1:
        return {next(iter(place.tunes)): tuner}
    result: dict[str, fx.Node] = {}
    after = tuner
    for i, (role, parameter) in enumerate(place.tunes.items()):
        if parameter is None and not _adds(place, site, role):
            continue
        with graph.inserting_after(after):
            after = result[role] = graph.call_function(operator.getitem, (tuner, i))
        inserted(after, origin, role=Role.PARAMETER)
    return result


def _adds(place: WeightPlace, site: Inserted, role: str) -> bool:
    """Whether the tuner gives the operation a parameter that it lacks."""
    with torch.device("meta"):
        tuner = site.site.build()
        named = place.site.parameters
        changed = tuner.changed(*(torch.empty(shape) if shape is not None else None for shape in named.values()))
    return isinstance(changed, tuple) and changed[list(place.tunes).index(role)] is not None


def _replace_everywhere(node: fx.Node, made: fx.Node) -> None:
    for reader in list(node.users):
        if info(reader).role != Role.TUNER:
            reader.replace_input_with(node, made)


def _reader(node: fx.Node, parameter: str) -> fx.Node:
    """The node that reads a parameter: the operation, or where it is spelled out, one of the nodes that it ends."""
    level = [node]
    for _ in range(_SPELLED):
        for n in level:
            if any(is_state(operand) and _is_made_of(operand, parameter) for operand in n.all_input_nodes):
                return n
        level = [i for n in level for i in n.all_input_nodes if not is_state(i)]
    return node


def _is_made_of(operand: fx.Node, parameter: str) -> bool:
    if operand.op == "get_attr":
        return str(operand.target) == parameter
    return any(_is_made_of(n, parameter) for n in operand.all_input_nodes)


def _replace(graph: fx.Graph, node: fx.Node, parameter: str, made: fx.Node) -> None:
    """Let an operation read a changed parameter, itself or through the model's own computation on it."""
    copies: dict[fx.Node, fx.Node] = {}

    def changed(operand: fx.Node) -> fx.Node:
        if operand.op == "get_attr":
            return made if str(operand.target) == parameter else operand
        if operand not in copies:
            copies[operand] = operand
            if is_state(operand) and any(changed(n) is not n for n in operand.all_input_nodes):
                with graph.inserting_before(node):
                    copies[operand] = graph.node_copy(operand, changed)
                inserted(copies[operand], info(operand).origin, role=Role.PARAMETER)
        return copies[operand]

    for operand in [n for n in node.all_input_nodes if is_state(n)]:
        new = changed(operand)
        if new is not operand:
            node.replace_input_with(operand, new)


def _like_weight(graph: fx.Graph, node: fx.Node, bias: fx.Node, place: WeightPlace) -> fx.Node:
    """A bias in the dtype of a weight in half precision, where no frozen bias says it."""
    weight = next((n for n in node.all_input_nodes if n.op == "get_attr"), None)
    if place.site.target.value.dtype not in HALVES or weight is None:
        return bias
    with graph.inserting_before(node):
        cast = graph.call_method("type_as", (bias, weight))
    inserted(cast, info(node).origin, role=Role.PARAMETER)
    return cast


def _add_bias(node: fx.Node, made: fx.Node) -> None:
    function = node.args[0] if node.target is recomputed else None
    written_again(node)
    set_operand(node, "bias", made)
    if function is not None:
        _recompute(node, str(function))


def _call_recomputed(node: fx.Node, place: WeightPlace) -> None:
    """Where the weight is tuned, a call that does not keep it for backward."""
    if node.target is recurrent or place.tunes.get("weight") is None:
        return
    if node.op == "call_method" and node.target in ("matmul", "bmm", "__matmul__"):
        function = "bmm" if node.target == "bmm" else "matmul"
    elif node.op == "call_function" and node.target in _RECOMPUTED:
        function = _RECOMPUTED[node.target]
    else:
        return
    _recompute(node, function)


def _recompute(node: fx.Node, function: str) -> None:
    info(node).written_as = (node.op, node.target)
    node.op, node.target = "call_function", recomputed
    node.args = (function, *node.args)


def written_again(node: fx.Node) -> None:
    """Undo `_call_recomputed`."""
    how = info(node).written_as
    if how is not None:
        del info(node).written_as
        node.op, node.target = how
        node.args = node.args[1:]
