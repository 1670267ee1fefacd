"""Writes that a model makes in place are recorded out of place, so that rules see values; here they are made in place
again wherever nothing can see the difference, because memory traffic is time: a ResNet-50 gains a tenth.

A node that capture converted carries `info(node).inplace`: how to write it either way.
"""

from __future__ import annotations

from collections import defaultdict

from torch import fx, nn

from utcompile.graph.meta import value_of
from utcompile.graph.node_info import InPlace, Role, info
from utcompile.graph.operations import is_state

_KEEPING = (Role.TUNER, Role.BRANCH, Role.OPERATION)  # autograd keeps the values that a tuner reads


def index_memory(
    graph: fx.Graph,
) -> tuple[dict[fx.Node, int], dict[int, list[fx.Node]], dict[str, list[fx.Node]]]:
    """The place of each node, the nodes whose values live in one storage, and the calls of one module."""
    position = {n: i for i, n in enumerate(graph.nodes)}
    by_storage: dict[int, list[fx.Node]] = defaultdict(list)
    calls: dict[str, list[fx.Node]] = defaultdict(list)
    for node in position:
        value = value_of(node)
        if value is not None:
            by_storage[value.storage].append(node)
        if node.op == "call_module":
            calls[str(node.target)].append(node)
    return position, by_storage, calls


def set_inplace(graph: fx.Graph, root: nn.Module) -> None:
    """Make converted nodes write in place if no later node, and no tuner at all, reads the overwritten memory."""
    position, by_storage, calls = index_memory(graph)
    free = {n: _is_free(n, by_storage, position) for n in position if info(n).inplace is not None}
    for node, alone in free.items():
        siblings = calls[str(node.target)] if node.op == "call_module" else [node]
        _write(node, root, alone and all(free.get(s, False) for s in siblings))


def clear_inplace(graph: fx.Graph, root: nn.Module) -> None:
    """Write every converted node out of place, so that its nodes can be run one by one and again."""
    for node in graph.nodes:
        if info(node).inplace is not None:
            _write(node, root, False)


def _is_free(node: fx.Node, by_storage: dict[int, list[fx.Node]], position: dict[fx.Node, int]) -> bool:
    source = node.args[0] if node.args else None
    value = value_of(source) if isinstance(source, fx.Node) else None
    if not isinstance(source, fx.Node) or value is None or source.op == "placeholder" or is_state(source):
        return False
    if info(source).role == Role.TUNER:  # it may keep its result for backward; a sum with it is another tensor
        return False
    here = position[node]
    readers = [u for n in by_storage[value.storage] if position[n] < here for u in n.users if u is not node]
    return all(position[u] < here and info(u).role not in _KEEPING for u in readers)


def _write(node: fx.Node, root: nn.Module, inplace: bool) -> None:
    how = info(node).inplace or InPlace()
    if node.op == "call_module":
        root.get_submodule(str(node.target)).inplace = inplace  # type: ignore[assignment]
    elif how.written is not None and how.plain is not None:
        node.op, node.target = how.written if inplace else how.plain
    else:
        rest = {k: v for k, v in node.kwargs.items() if k != "inplace"}
        node.kwargs = {**rest, "inplace": True} if inplace else rest
