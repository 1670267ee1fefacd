"""On which device a site is: a model may be spread over several."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import fx, nn

from utcompile.graph import find_state


def device_at(node: fx.Node, root: nn.Module) -> torch.device | None:
    """The device of the parameters or buffers that are read nearest to a node: on the way to it, else after it.

    Args:
        node: a value of a graph.
        root: what the graph's targets name.

    Returns:
        The device; None where the graph reads no parameter at all.
    """
    before = _nearest(node, lambda n: n.all_input_nodes, root)
    return before if before is not None else _nearest(node, lambda n: n.users, root)


def _nearest(node: fx.Node, step: Callable[[fx.Node], Iterable[fx.Node]], root: nn.Module) -> torch.device | None:
    level, seen = [node], {node}
    while level:
        found = next((t.device for n in level for t in _tensors(n, root)), None)
        if found is not None:
            return found
        level = list(dict.fromkeys(m for n in level for m in step(n) if m not in seen))
        seen |= set(level)
    return None


def _tensors(node: fx.Node, root: nn.Module) -> Iterable[torch.Tensor]:
    if node.op == "call_module":
        layer = root.get_submodule(str(node.target))
        return (*layer.parameters(), *layer.buffers())
    if node.op == "get_attr":
        found = find_state(root, str(node.target))
        return () if found is None else (found,)
    return ()
