"""On request, layers of a half-precision model compute in float32: where rounding would lose what a tuner learned.

`y = layer(x)` becomes `y = layer(x.type_as(w)).type_as(x)`, with the layer's parameters in float32.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from utcompile.folding.algebra.parameters import of_parameters
from utcompile.folding.folding import Folding, Unfoldable
from utcompile.folding.patch import Added, Draft, Edit, Editor, New, Patch, Redirect, Replace
from utcompile.graph import Value, ancestors, descendants, info, origin_of, owner_path, value_of


def plan_float32(model: Folding, names: Collection[str], results: Sequence[fx.Node]) -> Patch:
    """Let every operation that reads one of these parameters compute in float32, between casts.

    Args:
        results: what a site's fold yields.

    Raises:
        Unfoldable: an operation yields several values.
    """
    draft = Draft()
    for node in _readers(model, names):
        read = _parameters_of(model, node)
        for name in read:
            draft.values[name] = New(model.state(name), (torch.float32, model.home_of(name)[1]))
        if not info(node).float32:
            draft.edits += _between_casts(model, node, read[0])
    return draft.patch((), results)


def _readers(model: Folding, names: Collection[str]) -> list[fx.Node]:
    owners = {owner_path(n) for n in names}
    found = [n for n in model.nodes() if n.op == "call_module" and str(n.target) in owners]
    read = [n for n in model.nodes() if n.op == "get_attr" and str(n.target) in names]
    found += [n for n in descendants(read, until=lambda n: not of_parameters(n)) if not of_parameters(n)]
    if several := next((n for n in found if value_of(n) is None), None):
        raise Unfoldable(f"{several.name} yields several values, which cannot be cast")
    return found


def _parameters_of(model: Folding, node: fx.Node) -> list[str]:
    """The floating-point parameters and buffers that an operation reads; its weight first."""
    if node.op == "call_module":
        leaf, path = model.root.get_submodule(str(node.target)), str(node.target)
        every = [*leaf.named_parameters(), *leaf.named_buffers()]
        return [f"{path}.{n}" for n, t in every if t.is_floating_point()]
    read = ancestors([n for n in node.all_input_nodes if of_parameters(n)])
    names = dict.fromkeys(str(n.target) for n in read if n.op == "get_attr")
    return [n for n in names if model.raw(n).is_floating_point()]


def _between_casts(model: Folding, node: fx.Node, weight: str) -> list[Edit]:
    value, origin = value_of(node), origin_of(node)
    assert value is not None
    read = [n for n in node.all_input_nodes if not of_parameters(n) and _is_floating(n)]
    edits: list[Edit] = []
    if read:
        like = Added("get_attr", weight, (), node, origin, state=True)
        edits.append(like)
        for source in read:
            cast = Added("call_method", "type_as", (source, like), node, origin, value=_in(source, torch.float32))
            edits += [cast, Redirect(node, source, cast)]
        back = Added("call_method", "type_as", (node, read[0]), node, origin, value=value, behind=True)
    else:  # an embedding reads integers
        back = Added("call_method", "to", (node, model.home[0]), node, origin, value=value, behind=True)
    return [*edits, back, Replace(node, by=back, keep=True), InFloat32(node, replace(value, dtype=torch.float32))]


@dataclass(frozen=True)
class InFloat32:
    """An edit: a node is marked as one that computes in float32."""

    node: fx.Node
    value: Value

    def make(self, graph: Editor) -> None:
        """Do it."""
        graph.touch(self.node)
        known = info(self.node)
        known.float32, known.value = True, self.value


def _is_floating(node: fx.Node) -> bool:
    value = value_of(node)
    return value is not None and value.dtype.is_floating_point


def _in(node: fx.Node, dtype: torch.dtype) -> Value | None:
    value = value_of(node)
    return None if value is None else replace(value, dtype=dtype)
