"""A tuner in place, as folds see it: its module, and the nodes that rewriting made for it."""

from __future__ import annotations

from torch import fx

from utcompile.graph import Role, info

_CHANGED = {Role.SUM: 0, Role.BRANCH: 1}  # which argument is the value that the tuner's share is added to


def untuned(node: fx.Node) -> fx.Node | None:
    """The value that a tuner's share is added to, of the node that adds it; None of any other node."""
    place = _CHANGED.get(info(node).role or Role.TUNER)
    if place is None:
        return None
    found = node.args[place]
    assert isinstance(found, fx.Node)
    return found
