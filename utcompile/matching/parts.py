"""The parts of a value: by unbind, chunk, split, or indexing."""

from __future__ import annotations

import sys

from torch import fx

from utcompile.graph import GraphView


def parts_of(view: GraphView, node: fx.Node) -> dict[fx.Node, int]:
    """The values of which a node is a part, the nearest first, with the part's rank in each. A crop is a part too."""
    found: dict[fx.Node, int] = {}
    for current in view.layout_chain(node):
        op = view.operations[current]
        if op.name != "getitem" or "index" not in op.attributes or not isinstance(current.args[0], fx.Node):
            continue
        source, index = current.args[0], op.attributes["index"]
        split = view.operations[source]
        if split.name != "split":
            found[source] = _start(index)
        elif split.inputs:
            found[split.inputs[0]] = int(index)
    return found


def _start(index: object) -> int:
    """Where an index begins: its first integer, or the start of its first slice that has one.

    Those that count from the end come after the others: Falcon reads `[..., :-2, :]`, then `[..., [-2], :]`.
    """
    found = _first(index)
    return found if found >= 0 else sys.maxsize + found


def _first(index: object) -> int:
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, list) and len(part) == 1:
            (part,) = part
        if isinstance(part, int) and not isinstance(part, bool):
            return part
        if isinstance(part, slice) and isinstance(part.start, int):
            return part.start
    return 0
