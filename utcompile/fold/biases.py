"""Biases that folding had to add move on to a layer that had one before, so that the original architecture still fits.

`conv` without a bias, then BatchNorm: a shift absorbed into the convolution would be a new tensor. It is the map
`v -> v + b` of the convolution's result, and goes into what reads that, A2 of docs/folding.md, wherever all of it can.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from utcompile.fold.folding import Folding, Unfoldable
from utcompile.fold.maps import map_after
from utcompile.fold.patch import Arguments, Draft, Patch, Remove
from utcompile.fold.sinks import CONVS
from utcompile.fold.travel import Elementwise
from utcompile.graph import operation, tensor


def plan_biases(model: Folding) -> Iterator[tuple[str, Patch]]:
    """The added biases that can move, by name."""
    for node in list(model.graph.nodes):
        op = operation(node, model.root)
        name = op.parameters.get("bias")
        if op.name not in ("linear", *CONVS) or name is None or name in model.original or not model.is_parameter(name):
            continue  # or it is computed from others
        try:
            yield name, _plan(model, node, name)
        except Unfoldable:
            continue


def _plan(model: Folding, node: fx.Node, name: str) -> Patch:
    op = operation(node, model.root)
    rank = tensor(node).rank
    shape = [-1 if a == (rank - 1 if op.name == "linear" else 1) else 1 for a in range(rank)]
    bias = model.state(name).reshape(shape)
    model.check_read_once(node, name)
    changes, ends = map_after(model, node, Elementwise(torch.ones_like(bias), bias))
    if not all(layer.op.parameters.get("bias") in model.original for layer, _, _ in changes.layers):
        raise Unfoldable("it would be new there too")

    draft = Draft()
    changes.make(draft)
    _drop(draft, node, name)
    return draft.patch(op.inputs, ends, 1.0)


def _drop(draft: Draft, node: fx.Node, name: str) -> None:
    """Take away the bias of a linear or convolution."""
    draft.values[name] = None
    for read in [n for n in node.all_input_nodes if n.op == "get_attr" and str(n.target) == name]:
        args = tuple(None if a is read else a for a in node.args)
        draft.edits.append(Arguments(node, args, {k: v for k, v in node.kwargs.items() if v is not read}))
        if len(read.users) == 1:
            draft.edits.append(Remove(read))
