"""How a branch ends: back from the operand of a residual addition, or from the model's output.

`branch_tail(c) = y`: y is what is added to the stream, and c stands before the LayerScale, dropout, stochastic depth
and layout that lie between. A tuner placed before a LayerScale of 1e-6 would be mute.
"""

from __future__ import annotations

from functools import cached_property

from torch import fx

from utcompile.graph import GraphView, is_state, tensor

_LONGEST = 24


class Tails:
    """The residual branches and output tails of one graph."""

    def __init__(self, view: GraphView) -> None:
        self.view = view
        self._outputs: dict[fx.Node, tuple[fx.Node, ...]] = {}

    @cached_property
    def branches(self) -> dict[fx.Node, fx.Node]:
        """Operand of a residual addition -> the stream it is added to.

        Of the two operands of a sum of equal shapes, the branch is the one computed from the other; where neither is
        (a projected shortcut), both are branches.
        """
        found: dict[fx.Node, fx.Node] = {}
        for node in self.view.by_class["add"]:
            inputs = self.view.operations[node].inputs
            if len(inputs) != 2 or inputs[0] is inputs[1] or tensor(inputs[0]).shape != tensor(inputs[1]).shape:
                continue
            for branch, stream in (inputs, inputs[::-1]):
                if not self.view.depends(self.view.without_layout(stream), self.view.without_layout(branch)):
                    found.setdefault(branch, stream)
        return found

    def branch(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The values from which a residual branch ends in `node`, the nearest first; empty where it is no branch."""
        return self._walk(node) if node in self.branches else ()

    @cached_property
    def outputs(self) -> tuple[fx.Node, ...]:
        """The tensors that the model yields."""
        found = list(self.view.nodes[-1].all_input_nodes)
        for node in found:
            if "value" not in node.meta:  # a dataclass that holds outputs
                found += [n for n in node.all_input_nodes if n not in found]
        return tuple(n for n in found if "value" in n.meta and not is_state(n))

    def output(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The values from which the model's output ends in `node`, through layout and averaging."""
        return self._walk(node, averaging=True) if node in self.outputs else ()

    def _walk(self, node: fx.Node, averaging: bool = False) -> tuple[fx.Node, ...]:
        found = [node]
        for current in found:
            if len(found) > _LONGEST:
                break
            names, op = self.view.classes[current], self.view.operations[current]
            scales = op.name in ("mul", "div") and len(op.inputs) == 1  # by a parameter or a number
            averaged = averaging and current is not node and op.name in ("add", "stack") and len(op.inputs) > 1
            mean = averaging and op.name == "mean" and "stack" in self.view.classes[op.inputs[0]]
            if averaged or mean or (len(op.inputs) == 1 and (scales or names & {"layout", "dropout"})):
                found += [n for n in op.inputs if n not in found]
        return tuple(found)
