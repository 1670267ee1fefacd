"""Biases that folding had to add move on to a layer that had one before, so that the original architecture still fits.

`conv` without a bias, then BatchNorm: a shift absorbed into the convolution would be a new tensor. It is the map
`v -> v + b` of the convolution's result, and goes into what reads that, A2 of docs/folding.md, wherever all of it can.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from utcompile.folding.algebra.routes import map_after
from utcompile.folding.algebra.sinks import DENSE
from utcompile.folding.algebra.travel import Elementwise
from utcompile.folding.base import BaseFold
from utcompile.folding.case import Case
from utcompile.folding.folding import Folding, Options, Unfoldable
from utcompile.folding.patch import Argument, Draft, Patch, Remove
from utcompile.folding.site import Part
from utcompile.graph import operation, tensor


class MoveBiases(BaseFold):
    """`W' (W x + b) + b' = W' (W x) + (W' b + b')`, b a bias that folding has added."""

    name = "move_biases"
    status = "absorbed"
    cases = (
        Case(
            "B1",
            "a bias that folding added moves on: `W' (W x + b) + b' = W' (W x) + (W' b + b')`",
            "everything that reads it had a bias before",
            "it would be a new tensor there too",
            "folding/test_plain.py::test_an_added_bias_moves_to_the_batch_norm_behind_unless_something_else_sees_it",
        ),
    )
    reported = False

    def wanted(self, options: Options) -> bool:
        """Always."""
        return True

    def parts(self, model: Folding) -> Iterator[Part]:
        """The added biases, by name; none where nothing was folded."""
        for node in list(model.graph.nodes):
            op = operation(node, model.root)
            name = op.parameters.get("bias")
            if op.name in DENSE and name and name not in model.original and model.is_parameter(name):
                yield Part(name, node)  # others are computed from several

    def plan(self, part: Part, model: Folding) -> Patch:
        """Find the layers that can take it.

        Raises:
            Unfoldable: not all that reads it can, or the bias would be new there too.
        """
        node, name = part.node, part.id
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
        draft.edits.append(Argument(node, "bias", None))
        if len(read.users) == 1:
            draft.edits.append(Remove(read))
