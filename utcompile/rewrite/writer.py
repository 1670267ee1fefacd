"""What the insertions of all forms share: the graph that is rewritten, and every value as it is changed so far."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx, nn
from torch.fx.node import Argument, Target

from utcompile.graph import GraphView, Role, inserted, origin_of, tensor
from utcompile.matching import Site
from utcompile.tuners import Tuner


@dataclass(frozen=True)
class Inserted:
    """One tuner on its way into the graph.

    Attributes:
        site: where it goes.
        name: the tuner's module in the tuned model.
        tuner: that module.
    """

    site: Site
    name: str
    tuner: Tuner

    @property
    def id(self) -> str:
        """The site's id."""
        return self.site.id


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A graph to which sites are added one by one.

    Attributes:
        root: what the graph's targets name.
        graph: the graph, changed in place.
        view: the recorded graph, as it was matched.
        mapping: a recorded node -> its copy in the graph.
        current: a node -> its value as changed so far.
        running: (reader, value): links of a chain of tuners, which stay.
        states: a stage of a side network -> what it yields.
    """

    root: nn.Module
    graph: fx.Graph
    view: GraphView
    mapping: Mapping[fx.Node, fx.Node]
    current: dict[fx.Node, fx.Node] = field(default_factory=dict)
    running: set[tuple[fx.Node, fx.Node]] = field(default_factory=set)
    states: dict[str, fx.Node] = field(default_factory=dict)

    def value(self, target: fx.Node) -> fx.Node:
        """A value as changed so far."""
        return self.current.get(target, target)

    def link(self, target: fx.Node, node: fx.Node) -> None:
        """Let a node, which reads a value as changed so far, be that value for all other readers."""
        self.running.add((node, self.value(target)))
        self.current[target] = node

    def add(self, site: Inserted, target: fx.Node, added: fx.Node) -> None:
        """Add a node's result to a value."""
        args = (self.value(target), added)
        self.link(target, self.call(site, Role.SUM, operator.add, args, like=target, after=added))

    def tune(
        self,
        site: Inserted,
        args: tuple[fx.Node, ...],
        like: fx.Node,
        role: Role = Role.TUNER,
        after: fx.Node | None = None,
    ) -> fx.Node:
        """Call the site's tuner; see `call`."""
        return self.call(site, role, site.name, args, like=like, after=after)

    def call(
        self,
        site: Inserted,
        role: Role,
        what: Target,
        args: tuple[Argument, ...],
        *,
        like: fx.Node,
        after: fx.Node | None = None,
    ) -> fx.Node:
        """A new node.

        Args:
            site: for whose tuner it is.
            role: its part in the insertion.
            what: a module's name or a function.
            args: what it reads.
            like: the value whose shape and origin it has.
            after: the node that it follows; by default `like` as changed so far.
        """
        with self.graph.inserting_after(self.after_inputs(after or self.value(like))):
            if isinstance(what, str):
                node = self.graph.call_module(what, args)
            else:
                node = self.graph.call_function(what, args)
        node._rename(f"{re.sub(r'[^0-9A-Za-z_]', '_', site.id)}_{role}")
        return inserted(node, origin_of(like), value=tensor(like), role=role, site=site.id)

    def after_inputs(self, node: fx.Node) -> fx.Node:
        """A node itself; of the inputs of the model the last, since nothing is computed before it."""
        if node.op != "placeholder":
            return node
        return next(n for n in reversed(self.graph.nodes) if n.op == "placeholder")
