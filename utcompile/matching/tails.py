"""The structural words of a pattern: where a branch, the model's output and its stem end, and what is on the stream.

`branch_tail(c) = y`: y is added to the stream, and c is before the LayerScale, dropout, stochastic depth and layout
between the two. A tuner before a LayerScale of 1e-6 would have no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

from torch import fx

from utcompile.graph import GraphView, info, is_state, tensor, value_of
from utcompile.ops import Trait, having

_LONGEST = 24
_MISSES = {
    "branch_tail": "it is no branch of a residual addition",
    "any_tail": "it is followed by the end of a residual branch",
    "output_tail": "it is no output of the model",
    "stem_tail": "it is not where the model's first layer ends",
    "block_end": "an ffn follows it on the stream",
    "on_stream": "it is inside a residual branch or the stem, or a norm follows it",
}
_CONVS = having(Trait.CONV)
_BEFORE_STEM = having(Trait.ARITHMETIC | Trait.JOINS | Trait.CUTS | Trait.RESAMPLE)  # operations that prepare an input


class Tails:
    """The residual branches, output tails and stems of one graph."""

    words = frozenset(_MISSES)

    def __init__(self, view: GraphView) -> None:
        self.view = view
        self._streams: dict[fx.Node, bool] = {}

    def ends(self, word: str) -> Iterable[fx.Node] | None:
        """The nodes at which a word can end a pattern; None where its operand decides."""
        if word == "any_tail":
            return {*self.branches, *self._alone}
        known: dict[str, Callable[[], Iterable[fx.Node]]] = {
            "branch_tail": lambda: self.branches,
            "output_tail": lambda: self.outputs,
            "stem_tail": lambda: self.stems,
        }
        return known[word]() if word in known else None

    def walk(self, word: str, node: fx.Node) -> tuple[fx.Node, ...]:
        """The possible operands of a word whose value is a node, the nearest first."""
        if word == "branch_tail":
            return self._walk(node) if node in self.branches else ()
        if word == "any_tail":
            return self._walk(node) if node in self.branches else (node,) if node in self._alone else ()
        if word == "output_tail":
            return self._walk(node, output=True) if node in self.outputs else ()
        if word == "stem_tail":
            return (self.stems[node],) if node in self.stems else ()
        if word == "block_end":
            return (node,)
        return (node,) if self._on_stream(node) else ()

    def missed(self, word: str) -> str:
        """The reason why a word has no operand at a node, for messages."""
        return _MISSES[word]

    @cached_property
    def branches(self) -> dict[fx.Node, fx.Node]:
        """Operand of a residual addition -> the stream to which it is added.

        Of two operands of equal shape, the branch is the operand that is computed from the other. Where neither is (a
        projected shortcut), both are branches.
        """
        found: dict[fx.Node, fx.Node] = {}
        for node in self.view.by_class["add"]:
            inputs = self._summed(node)
            for branch, stream in (inputs, inputs[::-1]) if inputs else ():
                if not self.view.depends(self.view.without_layout(stream), self.view.without_layout(branch)):
                    found.setdefault(branch, stream)
        return found

    @cached_property
    def _of_stream(self) -> dict[fx.Node, list[fx.Node]]:
        found: dict[fx.Node, list[fx.Node]] = {}
        for branch, stream in self.branches.items():
            found.setdefault(self.view.without_layout(stream), []).append(branch)
        return found

    def branches_of(self, stream: fx.Node) -> list[fx.Node]:
        """The branches that are added to a value, or to the norm that is its only reader."""
        value = self.view.without_layout(stream)
        return self._of_stream.get(value) or self._of_stream.get(self.normed(value) or value, [])

    def _summed(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The two different values of one shape that an addition adds."""
        inputs = self.view.operations[node].inputs
        if len(inputs) != 2 or inputs[0] is inputs[1] or tensor(inputs[0]).shape != tensor(inputs[1]).shape:
            return ()
        return inputs

    @cached_property
    def _alone(self) -> frozenset[fx.Node]:
        """The results of layers that end no branch, with the norm that follows some of them."""
        tailed = {n for branch in self.branches for n in self._walk(branch, norms=True)}
        return frozenset(self.normed(n) or n for n in self.view.by_class["pointwise"] if n not in tailed)

    def normed(self, node: fx.Node) -> fx.Node | None:
        """The norm that is the only reader of a value, through layout."""
        for _ in range(_LONGEST):
            readers = [u for u in node.users if value_of(u) is not None]
            if len(readers) != 1:
                return None
            (node,) = readers
            if "norm" in self.view.classes[node]:
                return node
            if "layout" not in self.view.classes[node]:
                return None
        return None

    @cached_property
    def outputs(self) -> tuple[fx.Node, ...]:
        """The tensors that the model yields; a part of one yields none of them."""
        if self.view.module.part_path:
            return ()
        found = list(self.view.nodes[-1].all_input_nodes)
        for node in found:
            if info(node).value is None:  # a dataclass of outputs
                found += [n for n in node.all_input_nodes if n not in found]
        return tuple(n for n in found if info(n).value is not None and not is_state(n))

    def _walk(self, node: fx.Node, output: bool = False, norms: bool = False) -> tuple[fx.Node, ...]:
        found = [node]
        passed = {"layout", "dropout"} | ({"softmax"} if output else set()) | ({"norm"} if norms else set())
        for current in found:
            if len(found) > _LONGEST:
                break
            names, op = self.view.classes[current], self.view.operations[current]
            scales = op.name in ("mul", "div", *(["add"] if output else [])) and len(op.inputs) == 1  # by a parameter
            if output and op.name == "add" and len(op.inputs) == 2:  # BART adds a bias that it brings to the device
                whole = [n for n in op.inputs if tensor(n).shape == tensor(current).shape]
                found += [n for n in whole if len(whole) == 1 and n not in found]
            several = output and current is not node and op.name in ("add", "stack") and len(op.inputs) > 1
            averaged = several and self._apart(op.inputs)  # of a residual sum, one depends on the other
            mean = output and op.name == "mean" and "stack" in self.view.classes[op.inputs[0]]
            if averaged or mean:
                found += [n for n in op.inputs if n not in found]
            elif scales or names & passed:  # of two inputs the second gives a shape or dtype: reshape_as, type_as
                found += [n for n in op.inputs[:1] if n not in found]
        return tuple(found)

    def _apart(self, values: Sequence[fx.Node]) -> bool:
        """Whether none of the values is computed from another, as with the results of several heads."""
        return not any(self.view.depends(a, b) for a in values for b in values if a is not b)

    # --- stems --------------------------------------------------------------------------------------------------

    @cached_property
    def stems(self) -> dict[fx.Node, fx.Node]:
        """The end of each stem -> its layer, the first that reads an input of the model.

        From that layer the stem continues as long as one operation alone reads it: norm, activation, pooling, dropout,
        layout, class tokens and positions. It ends where the first block, or another layer, reads it twice.
        """
        found: dict[fx.Node, fx.Node] = {}
        for placeholder in self.view.nodes:
            if placeholder.op != "placeholder":
                continue
            frontier = [placeholder]
            for node in frontier:
                if len(frontier) > _LONGEST or self.branches_of(node):
                    break  # a value with a branch is the stream already
                for reader in node.users:
                    if self._is_layer(reader) and self.view.operations[reader].inputs[:1] == (node,):
                        found.setdefault(self._stem_end(reader), reader)
                    elif self._makes_ready(reader) and reader not in frontier:
                        frontier.append(reader)
        return found

    def _is_layer(self, node: fx.Node) -> bool:
        name = self.view.operations[node].name
        return name in _CONVS or name == "embedding" or "linear" in self.view.classes[node]

    def _makes_ready(self, node: fx.Node) -> bool:
        name = self.view.operations[node].name
        return name in _BEFORE_STEM or name == "normalize" or "layout" in self.view.classes[node]

    def _stem_end(self, node: fx.Node) -> fx.Node:
        for _ in range(_LONGEST):
            readers = [u for u in node.users if value_of(u) is not None or u.op == "output"]
            if len(readers) != 1 or readers[0].op == "output":
                return node
            (reader,) = readers
            op = self.view.operations[reader]
            follows = self.view.classes[reader] & {"norm", "activation", "pool", "dropout", "layout"}
            joins = op.name in ("add", "mul", "cat") and not any(
                self.view.depends(other, node) for other in op.inputs if other is not node
            )
            if not joins and not (follows and len(op.inputs) == 1):
                return node
            node = reader
        return node

    @cached_property
    def _stem_nodes(self) -> frozenset[fx.Node]:
        found: set[fx.Node] = set()
        for end, layer in self.stems.items():
            node = layer
            while node is not end and node not in found:
                found.add(node)
                node = next(u for u in node.users if value_of(u) is not None)
            found.add(end)
        return frozenset(found)

    # --- the stream ---------------------------------------------------------------------------------------------

    def _on_stream(self, node: fx.Node) -> bool:
        """Whether both operands of the next residual addition after a value depend on the value."""
        if node not in self._streams:
            self._streams[node] = self._leads_on(node)
        return self._streams[node]

    def _leads_on(self, node: fx.Node) -> bool:
        if self.view.without_layout(node) in self._stem_nodes or self.normed(node) is not None:
            return False
        reached = {node}
        for place in range(self.view.position[node] + 1, len(self.view.nodes)):
            later = self.view.nodes[place]
            if reached.isdisjoint(later.all_input_nodes):
                continue
            reached.add(later)
            summed = self._summed(later) if "add" in self.view.classes[later] else ()
            if summed:
                return reached.issuperset(summed)
        return True
