"""A patch on trial: applied, then kept, or taken back so that nothing of it remains.

Nodes that go are only detached (nothing reads them, and they read nothing) until the patch is kept: fx cannot bring an
erased node back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import fx, nn
from torch.fx.node import Argument, Target

from utcompile.folding.execute import in_float64
from utcompile.folding.folding import Folding, Unfoldable
from utcompile.folding.patch import Added, Given, Home, New, Operand, Patch
from utcompile.graph import inserted, owner_of

_V = TypeVar("_V")


@dataclass(frozen=True)
class _AsItWas:
    """One node: all that fx knows of it, and who read what it reads, in order."""

    op: str
    target: Target
    args: tuple[Argument, ...]
    kwargs: dict[str, Argument]
    meta: dict[str, object]


class Trial:
    """Patches that are applied to one model, on top of one another, until they are all kept or all taken back.

    Args:
        model: the model being folded.
    """

    def __init__(self, model: Folding) -> None:
        self.model = model
        self.names: dict[str, None] = {}
        self._nodes: dict[fx.Node, _AsItWas] = {}
        self._users: dict[fx.Node, list[fx.Node]] = {}
        self._made: dict[Added, fx.Node] = {}
        self._by: dict[fx.Node, fx.Node] = {}
        self._undone: list[Callable[[], object]] = []  # what puts entries of tables back

    # --- doing and undoing --------------------------------------------------------------------------------------------

    def apply(self, patch: Patch) -> list[fx.Node]:
        """Change the model; returns the nodes that then yield the values of the patch's outputs."""
        root = self.model.root
        for path, module in patch.modules.items():
            parent, child = owner_of(root, path)
            self._put(parent._modules, child, module)
        for name, value in patch.values.items():
            self._set(name, value)
        for edit in patch.edits:
            edit.make(self)
        return [self.now(n) for n in patch.outputs]

    def undo(self) -> None:
        """Put everything back: the same nodes, readers in the same order, the same tensors in the same places."""
        for node, was in self._nodes.items():
            if (node.op, node.target) != (was.op, was.target):
                node.op, node.target = was.op, was.target
            node.args, node.kwargs = was.args, was.kwargs
            node.meta.clear()
            node.meta.update(was.meta)
        for made in reversed(self._made.values()):
            self.model.graph.erase_node(made)
        for node, users in self._users.items():
            node.users.clear()
            node.users.update(dict.fromkeys(users))
        for put_back in reversed(self._undone):
            put_back()
        self.model.forget(self.names)
        self.model.gone.clear()

    def keep(self) -> None:
        """The patches stay: what was detached is erased, and the model knows what of it is no longer as it was."""
        others = {n for n in self._nodes if self._is_another(n)} | {
            n for n in self._made.values() if n.op != "get_attr"
        }
        self.model.outdate(others - self.model.gone.keys())
        for node in self.model.gone:
            self.model.graph.erase_node(node)
        self.model.gone.clear()
        self.model.settle()

    def _is_another(self, node: fx.Node) -> bool:
        """Whether a node has become another operation, or reads parameters that it did not read."""
        was = self._nodes[node]
        before: list[fx.Node] = []
        fx.node.map_arg((was.args, was.kwargs), before.append)
        read = {n for n in node.all_input_nodes if n.op == "get_attr"}
        return (node.op, node.target) != (was.op, was.target) or not read <= set(before)

    # --- what edits do ------------------------------------------------------------------------------------------------

    def touch(self, node: fx.Node) -> None:
        """Remember a node as it is."""
        if node not in self._nodes:
            self._nodes[node] = _AsItWas(node.op, node.target, node.args, dict(node.kwargs), dict(node.meta))
            for read in node.all_input_nodes:
                self._remember_users(read)

    def _remember_users(self, node: fx.Node) -> None:
        if node not in self._users:
            self._users[node] = list(node.users)

    def insert(self, added: Added) -> fx.Node:
        """Make a new node."""
        graph, args = self.model.graph, tuple(self.given(a) for a in added.args)
        place = graph.inserting_after if added.behind else graph.inserting_before
        with place(added.place):
            made = graph.create_node(added.op, added.target, args)
        self._made[added] = inserted(made, added.origin, state=added.state, value=added.value)
        return made

    def remove(self, node: fx.Node) -> None:
        """Take out a node that nothing reads.

        Raises:
            Unfoldable: something does.
        """
        if node.users:
            raise Unfoldable(f"{node.name} cannot go: {next(iter(node.users)).name} reads it")
        self.touch(node)
        node.args, node.kwargs = (), {}
        self.model.gone[node] = None

    def now(self, node: Operand) -> fx.Node:
        """The node that yields what a node yielded, or that was made of an added one."""
        found = self._made[node] if isinstance(node, Added) else node
        while found in self._by:
            found = self._by[found]
        self._remember_users(found)
        return found

    def given(self, arguments: Given) -> Argument:
        """Arguments in which each node, or added node, is the one that yields its value now."""
        match arguments:
            case Added() | fx.Node():
                return self.now(arguments)
            case tuple():
                return tuple(self.given(a) for a in arguments)
            case list():
                return [self.given(a) for a in arguments]
            case dict():
                return {k: self.given(v) for k, v in arguments.items()}
            case slice():
                return slice(*(self.given(a) for a in (arguments.start, arguments.stop, arguments.step)))
            case _:
                return arguments

    def stands_for(self, node: fx.Node, by: fx.Node) -> None:
        """Say that a node yields what another one yielded."""
        self._by[node] = by

    # --- parameters and buffers ---------------------------------------------------------------------------------------

    def _set(self, name: str, value: torch.Tensor | New | None) -> None:
        model = self.model
        owner, attribute = owner_of(model.root, name)
        known = attribute in owner._buffers or owner._parameters.get(attribute) is not None
        self.names[name] = None
        if value is None:
            self._home(name, None)
            self._put(owner._parameters, attribute, None)
            return
        new = value if isinstance(value, New) else New(value)
        self._home(name, new.home or (model.home_of(name) if known else model.home))
        exact = in_float64(name, new.value)
        if attribute in owner._buffers or (new.buffer and not known):
            self._put(owner._buffers, attribute, exact)
        else:
            self._put(owner._parameters, attribute, nn.Parameter(exact, requires_grad=False))

    def _home(self, name: str, home: Home | None) -> None:
        model = self.model
        if home is not None:
            self._put(model.changed, name, home)
        elif name in model.changed:
            self._undone.append(partial(model.changed.__setitem__, name, model.changed.pop(name)))
        model.forget([name])

    def _put(self, table: dict[str, _V], key: str, value: _V) -> None:
        """Change an entry of a table, and remember how it was."""
        self._undone.append(partial(table.__setitem__, key, table[key]) if key in table else partial(table.pop, key))
        table[key] = value
