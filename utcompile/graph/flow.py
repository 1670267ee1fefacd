"""The axes of the values of a graph as they become known from the operations.

The functions that carry axes through operations are in `flow_moves` and `flow_layers`; `layout` calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod

from torch import fx

from utcompile.graph.axes import (
    Atom,
    Axis,
    Found,
    Origin,
    Sizes,
    are_mixed,
    inherit,
    letter_of,
    resolved,
    role_of,
    same,
    whole,
)
from utcompile.graph.operations import Operation
from utcompile.graph.value import BATCH, Size


class Flow:
    """The axes of the values of one graph, found in graph order."""

    def __init__(self, operations: Mapping[fx.Node, Operation], written: Callable[[fx.Node], Operation]) -> None:
        self.operations, self.written = operations, written
        self.axes: dict[fx.Node, list[Axis]] = {}
        self.position: dict[fx.Node, int] = {}
        self.size = Sizes()
        self._count = 0

    # --- making and naming axes -----------------------------------------------------------------------------------

    def fresh(
        self,
        size: int,
        role: str | None = None,
        *,
        letter: str = "",
        maker: fx.Node | None = None,
        shape: object = None,
    ) -> Axis:
        """A new axis; one whose size varies with the batch or a length is known by that."""
        if isinstance(shape, Size) and role is None:
            symbols = {s for monomial, _ in shape.terms for s in monomial}
            role = "batch" if BATCH in symbols else "space"
        if size == 1 and role != "channel":
            return ()
        self._count += 1
        return (Atom(Origin(size, role, self._count, letter, maker), 1, size),)

    def like(self, axis: Axis, size: int) -> Axis:
        """An axis of another size in place of an axis: cut, padded or pooled.

        A part of channels is channels, except for an axis that contains other things too.
        """
        axis = resolved(axis)
        if prod(a.size for a in axis) == size:
            return axis
        role = role_of(axis) if len({a.origin.role for a in axis}) == 1 else None
        made = self.fresh(size, role, letter=letter_of([axis]))
        if made and role == "channel":
            inherit(made[0].origin, [axis])
            if made[0].origin.sealed:  # shifted channels are not cut between the parts that made them
                made[0].origin.makers.clear()
        return made

    def mixed(self, size: int) -> Axis:
        """An axis of channels that no order of their makers puts in another order."""
        made = self.fresh(size, "channel")
        made[0].origin.moved = True
        return made

    def say(self, node: fx.Node, index: int, role: str, letter: str = "") -> None:
        """An operation that reads a value says what one of its axes contains, where that is not known yet."""
        axis = resolved(self.axes[node][index])
        if not axis and role == "channel":  # one channel
            self.axes[node][index] = self.fresh(1, role)
            return
        origin = whole(axis)
        if origin is not None and origin.role is None:
            origin.role, origin.letter = role, letter

    def read(self, node: fx.Node) -> list[Axis]:
        """The axes of a value."""
        return [resolved(a) for a in self.axes[node]]

    def together(self, nodes: Iterable[fx.Node], sizes: Sequence[int]) -> list[Axis | None]:
        """The axes of a result that values are broadcast to; equal places are made known to be the same."""
        found: list[Axis | None] = [() if s == 1 else None for s in sizes]
        for node in sorted(set(nodes), key=self.position.__getitem__):
            axes = self.axes[node]
            skip = len(sizes) - len(axes)
            for i, axis in enumerate(axes, skip):
                if i < 0 or prod(a.size for a in axis) != sizes[i] or (sizes[i] == 1 and not axis):
                    continue
                kept = found[i]
                if kept and are_mixed(kept, axis):
                    found[i] = self.mixed(sizes[i])
                elif kept:
                    same(kept, axis)
                    found[i] = resolved(kept)
                else:
                    found[i] = axis
        return found


def keep(flow: Flow, node: fx.Node, op: Operation, sizes: list[int]) -> Found:
    """The axes of the first value that an operation reads."""
    axes = flow.read(op.inputs[0])
    return [*axes] if len(axes) == len(sizes) else None
