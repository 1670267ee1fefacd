"""A patch: what a fold changes of a model, as data. `Trial` applies it, and takes it back where the proof fails."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
from torch import fx, nn
from torch.fx.node import Argument as Argument_
from torch.fx.node import Target

from utcompile.graph import Origin, Value, info, set_operand

Home = tuple[torch.dtype, torch.device]
# what a node is called with, where nodes may be added ones
Given: TypeAlias = "Argument_ | Added | tuple[Given, ...] | list[Given] | dict[str, Given]"


@dataclass(frozen=True)
class New:
    """The value of a parameter or buffer whose dtype and device are not those that it has now.

    Attributes:
        value: in float64.
        home: its dtype and device in the folded model; those of the model where None.
        buffer: whether a new one is a buffer.
    """

    value: torch.Tensor
    home: Home | None = None
    buffer: bool = False


@dataclass(frozen=True, eq=False)
class Added:
    """An edit: a new node; in other edits it stands for the node that is made of it.

    Attributes:
        op: `get_attr`, `call_method` or `call_function`.
        target, args: as of a node of fx; arguments may be other added nodes.
        place: the node in front of which it comes, or behind which.
        state: whether it is computed from parameters and buffers alone.
        value: what it yields, where that is one tensor.
    """

    op: str
    target: Target
    args: tuple[Given, ...]
    place: fx.Node
    origin: Origin | None = None
    state: bool = False
    value: Value | None = None
    behind: bool = False

    def make(self, graph: Editor) -> None:
        """Insert it."""
        graph.insert(self)


Operand = fx.Node | Added


@dataclass(frozen=True)
class Replace:
    """An edit: every reader of a node reads another one; the node goes, unless it is kept for that one to read."""

    node: fx.Node
    by: Operand
    keep: bool = False

    def make(self, graph: Editor) -> None:
        """Do it."""
        by = graph.now(self.by)
        for reader in list(self.node.users):
            if reader is not by:
                graph.touch(reader)
                reader.replace_input_with(self.node, by)
        graph.stands_for(self.node, by)
        if not self.keep:
            graph.remove(self.node)


@dataclass(frozen=True)
class Redirect:
    """An edit: one node reads another operand instead of one that it reads."""

    node: fx.Node
    old: fx.Node
    new: Operand

    def make(self, graph: Editor) -> None:
        """Do it."""
        graph.touch(self.node)
        self.node.replace_input_with(graph.now(self.old), graph.now(self.new))


@dataclass(frozen=True)
class Argument:
    """An edit: one argument of a call, by its name in the operation's signature."""

    node: fx.Node
    role: str
    value: Given

    def make(self, graph: Editor) -> None:
        """Do it."""
        graph.touch(self.node)
        set_operand(self.node, self.role, graph.given(self.value))


@dataclass(frozen=True)
class Retype:
    """An edit: what a node yields has another shape or dtype."""

    node: fx.Node
    value: Value

    def make(self, graph: Editor) -> None:
        """Do it."""
        graph.touch(self.node)
        info(self.node).value = self.value


@dataclass(frozen=True)
class Remove:
    """An edit: a node goes that nothing reads any more."""

    node: fx.Node

    def make(self, graph: Editor) -> None:
        """Do it."""
        graph.remove(self.node)


@dataclass(frozen=True)
class Unread:
    """An edit: nodes that come in graph order go, last first, where nothing reads them any more."""

    nodes: tuple[fx.Node, ...]

    def make(self, graph: Editor) -> None:
        """Do it."""
        for node in reversed(self.nodes):
            if not node.users:
                graph.remove(node)


class Edit(Protocol):
    """A change of the graph, made by the methods of an editor, which can take it back."""

    def make(self, graph: Editor) -> None:
        """Do it."""


class Editor(Protocol):
    """What an edit may do; `Trial` is one."""

    def touch(self, node: fx.Node) -> None:
        """Remember a node as it is: its operation, arguments, metadata may then be changed."""

    def insert(self, added: Added) -> fx.Node:
        """Make a new node."""

    def remove(self, node: fx.Node) -> None:
        """Take out a node that nothing reads."""

    def now(self, node: Operand) -> fx.Node:
        """The node that yields what a node yielded, or that was made of an added one."""

    def given(self, arguments: Given) -> Argument_:
        """Arguments in which each node, or added node, is the one that yields its value now."""

    def stands_for(self, node: fx.Node, by: fx.Node) -> None:
        """Say that a node yields what another one yielded."""


@dataclass(frozen=True)
class Patch:
    """What a fold changes, found possible and not yet done.

    Attributes:
        sources: values that it leaves alone, from which everything that it changes is computed.
        outputs: the nodes whose values must stay the same: the proof compares them.
        values: parameters and buffers by name, in float64. One that exists keeps its dtype and device; a name that is
            new becomes a parameter of the model's dtype; None takes one away.
        modules: modules by path that take the places of others, before the values are set.
        edits: changes of the graph, in order.
        retained: the share of the tuner's effect that rounding to the model's dtype leaves; None where it is measured.
    """

    sources: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    values: Mapping[str, torch.Tensor | New | None] = field(default_factory=dict)
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()
    retained: float | None = None


@dataclass
class Draft:
    """A patch that is being written: parts of a plan add to it."""

    values: dict[str, torch.Tensor | New | None] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)

    def patch(self, sources: Iterable[fx.Node], outputs: Iterable[fx.Node], retained: float | None = None) -> Patch:
        """The patch, with the values between which the proof compares."""
        return Patch(tuple(sources), tuple(outputs), self.values, self.modules, tuple(self.edits), retained)
