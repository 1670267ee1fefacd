"""The axes of every value of a graph: each operation carries those of what it reads to what it makes.

An operation that is in neither table makes axes that nobody knows; nothing is guessed from sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

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
from utcompile.graph.flow_layers import LAYERS
from utcompile.graph.flow_moves import MOVES, part_of
from utcompile.graph.meta import value_of
from utcompile.graph.operations import Operation, is_state
from utcompile.graph.value import BATCH, Size

_HANDLERS: Mapping[str, Callable[..., Found]] = {**MOVES, **LAYERS}


class Flow:
    """The axes of the values of one graph, found in graph order."""

    def __init__(self, operations: Mapping[fx.Node, Operation], written: Callable[[fx.Node], Operation]) -> None:
        self.operations, self.written = operations, written
        self.axes: dict[fx.Node, list[Axis]] = {}
        self.position: dict[fx.Node, int] = {}
        self.size = Sizes()
        self._count = 0

    def visit(self, node: fx.Node) -> None:
        """Find the axes of a node's value; its inputs have theirs."""
        self.position[node] = len(self.position)
        value = value_of(node)
        if value is None or is_state(node):
            return
        sizes = [self.size(s) for s in value.shape]
        op = self.operations[node]
        if op.attributes.get("spelled_out"):
            op = self.written(node)
        known = all(i in self.axes for i in op.inputs)
        handler = _HANDLERS.get(op.name) if known and op.inputs else None
        found = handler(self, node, op, sizes) if handler else None
        if op.name == "getitem" and not op.inputs and isinstance(node.args[0], fx.Node):
            found = part_of(self, node, node.args[0], sizes)
        if found is None or len(found) != len(sizes):
            found = [None] * len(sizes)
        self.axes[node] = [
            axis if axis is not None and prod(a.size for a in axis) == size else self.fresh(size, shape=dim)
            for axis, size, dim in zip(found, sizes, value.shape, strict=True)
        ]

    # --- making and naming axes -----------------------------------------------------------------------------------

    def fresh(
        self, size: int, role: str | None = None, *, letter: str = "", maker: fx.Node | None = None, shape: Any = None
    ) -> Axis:
        """An axis of its own; one whose size varies with the batch or a length is known by that."""
        if isinstance(shape, Size) and role is None:
            symbols = {s for monomial, _ in shape.terms for s in monomial}
            role = "batch" if BATCH in symbols else "space"
        if size == 1 and role != "channel":
            return ()
        self._count += 1
        return (Atom(Origin(size, role, self._count, letter, maker), 1, size),)

    def like(self, axis: Axis, size: int) -> Axis:
        """An axis of another size in place of an axis: cut, padded or pooled.

        What is left of channels are channels, but for an axis that holds them among other things.
        """
        axis = resolved(axis)
        if prod(a.size for a in axis) == size:
            return axis
        role = role_of(axis) if len({a.origin.role for a in axis}) == 1 else None
        made = self.fresh(size, role, letter=letter_of([axis]))
        if made and role == "channel":
            inherit(made[0].origin, [axis])
            if made[0].origin.sealed:  # what was shifted is not cut between its makers' parts
                made[0].origin.makers.clear()
        return made

    def mixed(self, size: int) -> Axis:
        """An axis of channels that no order of their makers puts in another order."""
        made = self.fresh(size, "channel")
        made[0].origin.moved = True
        return made

    def say(self, node: fx.Node, index: int, role: str, letter: str = "") -> None:
        """An operation that reads a value says what one of its axes holds, where nobody has said it."""
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
