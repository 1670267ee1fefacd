"""Whether the axis before the tokens of an attention has its heads, or divides the tokens into windows."""

from __future__ import annotations

from torch import fx

from utcompile.graph import GraphView, value_of

_NO_POSITIONS = frozenset({"heads", "1", "?", "K", "C", "c"})  # words of an axis that has no positions


def has_windows(node: fx.Node, view: GraphView) -> bool:
    """Whether axis -3 of a value `(…, S, d)` has positions: Hiera and NesT read `(B, heads, windows, S, d)`.

    False where nothing is known of the axis.
    """
    value, layout = value_of(node), view.layouts.get(node)
    if value is None or layout is None or value.rank < 4:
        return False
    *others, axis, _, _ = (frozenset(name.strip("()").split()) for name in layout.axes)
    if "heads" in axis or axis == {"1"}:
        return False
    return any("heads" in other or other == {"1"} for other in others) or not axis <= _NO_POSITIONS
