"""The grid behind a row of tokens: the feature map that was flattened into it, found in the graph."""

from __future__ import annotations

from math import prod
from weakref import WeakKeyDictionary

from torch import fx

from utcompile.graph import GraphView, value_of
from utcompile.ops import Trait, having

Grid = tuple[int, int]
_KNOWN: WeakKeyDictionary[GraphView, dict[fx.Node, tuple[Grid, ...]]] = WeakKeyDictionary()
_MOST_EXTRA = 16  # class, distillation and register tokens in front of the patches
_MAKES = having(Trait.LAYER | Trait.POOL | Trait.RESAMPLE)


def grid_of(node: fx.Node, view: GraphView) -> Grid | None:
    """Height and width of the feature map that a value's tokens were: the nearest map of at most as many positions.

    `(B, 197, C)` behind a patch embedding `(B, C, 14, 14)` gives (14, 14): one token is no patch.
    """
    if view not in _KNOWN:
        _KNOWN[view] = _grids(view)
    value = value_of(node)
    if value is None or value.rank != 3 or not isinstance(value.shape[1], int):
        return None
    fitting = (g for g in _KNOWN[view].get(node, ()) if 0 <= value.shape[1] - prod(g) <= _MOST_EXTRA)
    return next(fitting, None)


def _grids(view: GraphView) -> dict[fx.Node, tuple[Grid, ...]]:
    """The feature maps that each value comes from, the nearest first."""
    grids: dict[fx.Node, tuple[Grid, ...]] = {}
    for node in view.nodes:
        found = dict.fromkeys(g for n in node.all_input_nodes for g in grids.get(n, ()))
        own = _own(node, view)
        if own is not None:
            found = {own: None, **found}
        grids[node] = tuple(found)
    return grids


def _own(node: fx.Node, view: GraphView) -> Grid | None:
    """The size of a feature map, `(B, C, H, W)` or `(B, H, W, C)`. Windows do not count: they are more than B."""
    value, name = value_of(node), view.operations[node].name
    if value is None or value.rank != 4 or (name not in _MAKES and name != "add"):
        return None
    axis = view.channel_axis[node]
    spatial = value.shape[2:] if axis == 1 else value.shape[1:3] if axis == 3 else ()
    if len(spatial) != 2 or any(value.sizes(batch)[0] != batch for batch in (2, 3)):
        return None
    height, width = spatial
    if not (isinstance(height, int) and isinstance(width, int)) or height * width == 1:
        return None
    return height, width
