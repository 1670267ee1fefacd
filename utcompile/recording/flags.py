"""Properties of tensors that Python read (`requires_grad`, `is_contiguous`) are checked in every call."""

from __future__ import annotations

from torch import fx

from utcompile.graph import info, place_of
from utcompile.recording.guards import FlagCheck, Guard
from utcompile.recording.size_nodes import SizeNodes


def insert_flag_checks(sizes: SizeNodes) -> tuple[Guard, ...]:
    """Put a check behind every tensor of which all recordings read one value of a property; returns the guards."""
    read: dict[tuple[int, str], list[tuple[bool, str]]] = {}
    for recording in sizes.recordings:
        for key, (value, line) in recording.questions.flags.items():
            read.setdefault(key, []).append((value, line))
    guards = []
    for (serial, name), found in read.items():
        node = sizes.nodes.get(serial)  # none for the mode of gradients
        if node is None or len({value for value, _ in found}) > 1 or _is_fixed(node, name):
            continue  # read as both in recordings that are one graph: it does not matter
        value, line = found[0]
        guard = Guard(f"{_shown(node)}.{name} is {value}", line)
        with sizes.graph.inserting_after(sizes.after if node.op == "placeholder" else node):
            info(sizes.graph.call_function(FlagCheck(guard, name, value), (node,))).check = True
        guards.append(guard)
    return tuple(guards)


def _is_fixed(node: fx.Node, name: str) -> bool:
    """Whether nothing in a call can change a property: a captured model's own weights are frozen."""
    return name == "requires_grad" and node.op == "get_attr"


def _shown(node: fx.Node) -> str:
    return str(node.target) if node.op == "placeholder" else place_of(node) or node.name
