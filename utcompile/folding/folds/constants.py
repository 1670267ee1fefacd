"""On request, what the base computes from parameters alone in each call is computed once, into a buffer.

Gathers of a relative position bias, weight standardisation, tables of positions of a fixed length.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from utcompile.folding.algebra.buffers import new_buffer
from utcompile.folding.algebra.constant_nodes import constant_nodes
from utcompile.folding.base import BaseFold
from utcompile.folding.case import Case
from utcompile.folding.folding import Folding, Options
from utcompile.folding.patch import Draft, Patch, Replace, Unread
from utcompile.folding.site import Part
from utcompile.graph import ancestors, info, operation, value_of
from utcompile.ops import Trait, having

# what costs next to nothing: a constant that only these make is a view of a parameter
_FREE = having(Trait.VIEW | Trait.SAME | Trait.DROPOUT)


class Constants(BaseFold):
    """`f(W)`, W alone, becomes a buffer with its value."""

    name = "constants"
    status = "constant"
    cases = (
        Case(
            "C1",
            "`constants=True`: what the base computes from parameters alone in every call becomes a buffer, "
            "`….weight_constant`: gathers of a relative position bias, weight standardisation",
            "it depends on no input and on no tuner that was kept, and is more than a view",
            "a view costs nothing, and a buffer would be a second copy of the weight",
            "folding/test_constants.py::test_constants_of_the_base_on_request",
        ),
    )

    def wanted(self, options: Options) -> bool:
        """With `constants=True`."""
        return options.constants

    def parts(self, model: Folding) -> Iterator[Part]:
        """What the base computes from parameters alone, each with the name of the buffer that it becomes."""
        constant = constant_nodes(model.graph)
        for node in list(model.graph.nodes):
            if node not in constant or node.op == "get_attr" or all(u in constant for u in node.users):
                continue
            while operation(node, model.root).name == "expand":  # which would be written out
                (node,) = node.all_input_nodes
            sources = _above(node)
            names = [str(n.target) for n in sources if n.op == "get_attr"]
            read = next((n for n in names if model.is_parameter(n)), names[0] if names else None)
            costs = any(_costs(n, model) for n in sources)
            tuned = any(info(n).site is not None for n in sources)
            if read is not None and costs and not tuned and _is_floating(node):
                yield Part(f"{read}_constant", node)

    def plan(self, part: Part, model: Folding) -> Patch:
        """The value, computed once in float64."""
        node, draft = part.node, Draft()
        path, _, attribute = part.id.rpartition(".")
        buffer = new_buffer(model, draft, path, attribute, model.evaluate(node), node)
        dead = [n for n in reversed(_above(node)) if n.op != "get_attr" and n is not node]
        draft.edits += [Replace(node, by=buffer), Unread(tuple(dead))]
        return draft.patch((), (node,), 1.0)


def _costs(node: fx.Node, model: Folding) -> bool:
    gathers = len(node.all_input_nodes) > 1  # indices from a table, and no part of a tensor
    return node.op != "get_attr" and (gathers or operation(node, model.root).name not in _FREE)


def _above(node: fx.Node) -> list[fx.Node]:
    """A constant and all it is computed from, readers before what they read."""
    return sorted(ancestors([node]), reverse=True)


def _is_floating(node: fx.Node) -> bool:
    value = value_of(node)
    return value is not None and value.dtype.is_floating_point
