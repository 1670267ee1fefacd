"""What autograd keeps of a tuned graph, read off its nodes.

Two questions have two answers, because a graph may call what no table knows: what may keep a value (then it is not
worth making again), and what surely keeps a value (then other values can be made from it).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import fx, nn

from utcompile.graph import Operation, Role, info, is_state, operation, readers, value_of
from utcompile.ops import Trait, having
from utcompile.tuners import Lora

_NOTHING, _INPUT, _RESULT = (having(t) for t in (Trait.KEEPS_NOTHING, Trait.KEEPS_INPUT, Trait.KEEPS_RESULT))
_NO_RESULT = having(Trait.KEEPS_NOTHING | Trait.KEEPS_INPUT | Trait.KEEPS_NO_RESULT | Trait.CONV)
_SAME_MEMORY = having(Trait.SAME | Trait.VIEW | Trait.AXES | Trait.DROPOUT)
_CONVS = having(Trait.CONV)


class Reading:
    """A tuned graph and its modules, read for what autograd does with them.

    Args:
        graph: the graph.
        root: the module that it is of.
        follows_mode: whether dropout of the backbone may be on.
    """

    def __init__(self, graph: fx.Graph, root: nn.Module, follows_mode: bool) -> None:
        self.graph, self.root, self.follows_mode = graph, root, follows_mode
        self.operations: dict[fx.Node, Operation] = {n: operation(n, root) for n in graph.nodes}
        self.regions = set(_in_regions(graph))

    def tuner(self, node: fx.Node) -> nn.Module | None:
        """The tuner that a node calls."""
        is_call = node.op == "call_module" and info(node).role is not None
        return self.root.get_submodule(str(node.target)) if is_call else None

    @cached_property
    def trains(self) -> set[fx.Node]:
        """The nodes through which a gradient goes back."""
        found: set[fx.Node] = set()
        for node in self.graph.nodes:
            value = value_of(node)
            if node in self.regions or (value is not None and not value.dtype.is_floating_point):
                continue
            if self.operations[node].name != "detach" and (
                self._owns(node) or not found.isdisjoint(node.all_input_nodes)
            ):
                found.add(node)
        return found

    def _owns(self, node: fx.Node) -> bool:
        """Whether a node reads a parameter that trains."""
        if node.op == "call_module":
            return any(p.requires_grad for p in self.root.get_submodule(str(node.target)).parameters())
        return node.op == "get_attr" and self._requires_grad(str(node.target))

    def _requires_grad(self, name: str) -> bool:
        path, _, attribute = name.rpartition(".")
        value = getattr(self.root.get_submodule(path), attribute, None)
        if isinstance(value, nn.Module):
            return any(p.requires_grad for p in value.parameters())
        return isinstance(value, torch.Tensor) and value.requires_grad

    def is_frozen(self, node: fx.Node) -> bool:
        """Whether an operation's own parameters need no gradient."""
        return not any(n in self.trains for n in node.all_input_nodes if is_state(n)) and not self._owns(node)

    def keepers(self, value: fx.Node) -> set[fx.Node]:
        """The nodes that may keep a value for backward: what makes it, and its readers, those of its views too."""
        found = {value} if value in self.trains and self._may_keep_result(value) else set()
        for reader in readers(value):
            if reader in self.trains or reader in self.regions or reader.op == "output":
                found |= self._kept_by(reader, value)
            elif self.shares_memory(reader):
                found |= self.keepers(reader)
        return found

    def _kept_by(self, reader: fx.Node, value: fx.Node) -> set[fx.Node]:
        if reader in self.regions or reader.op == "output":
            return {reader}
        name = self.operations[reader].name
        if self.shares_memory(reader):
            return self.keepers(reader)
        if info(reader).role is Role.BRANCH and type(self.tuner(reader)) is Lora:
            own = self.keepers(reader) if reader.args[1] is value else set()
            return own | {reader} if reader.args[0] is value else own
        if name in _NOTHING:
            return self.keepers(reader) if info(reader).inplace or name in ("to", "type_as") else set()
        if name == "linear" and self.is_frozen(reader) and len(self.operations[reader].inputs) == 1:
            return set()
        if name == "batch_norm" and self.is_frozen(reader) and not self.follows_mode:
            return set()
        if name in _CONVS and self.keeps_no_input(reader):
            return set()
        if name == "mul" and value not in self._factors(reader):
            return set()
        if name == "relu":
            return self.keepers(reader) if info(reader).inplace else set()
        return set() if self.is_plain_pool(reader) else {reader}

    def _may_keep_result(self, node: fx.Node) -> bool:
        name = self.operations[node].name
        sure = name in _NO_RESULT or self.shares_memory(node)
        return not (sure or info(node).role is Role.BRANCH or node.op in ("placeholder", "get_attr"))

    def shares_memory(self, node: fx.Node) -> bool:
        """Whether what a node yields may be its input's memory, and nothing is computed."""
        name = self.operations[node].name
        return name in _SAME_MEMORY and not (self.follows_mode and name in having(Trait.DROPOUT))

    def is_plain_pool(self, node: fx.Node) -> bool:
        """Whether a node is a layer that pools maxima in two dimensions and yields nothing else."""
        leaf = self.root.get_submodule(str(node.target)) if node.op == "call_module" else None
        return type(leaf) is nn.MaxPool2d and not leaf.return_indices and len(node.args) == 1

    def keeps_no_input(self, node: fx.Node) -> bool:
        """Whether a convolution is frozen and can be called without keeping its input."""
        op = self.operations[node]
        plain = op.attributes.get("padding_mode", "zeros") == "zeros"
        return plain and not isinstance(op.attributes.get("padding"), str) and self.is_frozen(node)

    def _factors(self, node: fx.Node) -> set[fx.Node]:
        """The factors of a product that it keeps: each whose partner needs a gradient."""
        inputs = [n for n in node.all_input_nodes if value_of(n) is not None]
        return {n for n in inputs if len(inputs) < 2 or any(o in self.trains for o in inputs if o is not n)}

    def surely_kept(self, value: fx.Node, dropped: set[tuple[fx.Node, fx.Node]]) -> bool:
        """Whether a value is kept in every case; `dropped` are pairs of a node and what it does not keep any more."""
        if value in self.regions or value.op in ("placeholder", "get_attr"):
            return False
        if value in self.trains and self.operations[value].name in _RESULT - {"relu"}:
            return True
        for reader in readers(value):
            if (reader, value) in dropped or reader not in self.trains:
                continue
            name = self.operations[reader].name
            if name in _INPUT and self.operations[reader].inputs[:1] == (value,) and value in self.trains:
                return True
            if name == "mul" and value in self._factors(reader):
                return True
        return False


def _in_regions(graph: fx.Graph) -> Iterator[fx.Node]:
    """The nodes between the beginning and the end of a region, such as one of `no_grad` or autocast."""
    depth = 0
    for node in graph.nodes:
        if info(node).region:
            begins = not any(isinstance(a, fx.Node) for a in node.args)
            depth += 1 if begins else -1
        if depth > 0 or info(node).region:
            yield node
