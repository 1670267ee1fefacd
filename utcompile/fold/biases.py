"""Biases that folding had to add move on to a layer that had one before, so that the original architecture still fits.

`conv` without a bias, then BatchNorm: a shift absorbed into the convolution would be a new tensor. It is the map
`v -> v + b` of the convolution's result, and goes into what reads that, A2 of docs/folding.md, wherever all of it can.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import fx

from utcompile.fold.layers import Planned, Unfoldable, Work
from utcompile.fold.maps import map_after
from utcompile.fold.sinks import DENSE
from utcompile.fold.travel import Elementwise
from utcompile.graph import operation, tensor


def plan_biases(work: Work, original: Collection[str]) -> Iterator[tuple[str, Planned]]:
    """The added biases that can move, by name.

    Args:
        original: the names of the parameters that the base had.
    """
    for node in list(work.graph.nodes):
        op = operation(node, work.root)
        name = op.parameters.get("bias")
        if op.name not in DENSE or name is None or name in original or not work.is_parameter(name):
            continue  # or it is computed from others
        try:
            yield name, _plan(work, node, name, original)
        except Unfoldable:
            continue


def _plan(work: Work, node: fx.Node, name: str, original: Collection[str]) -> Planned:
    op = operation(node, work.root)
    rank = tensor(node).rank
    shape = [-1 if a == (rank - 1 if op.name == "linear" else 1) else 1 for a in range(rank)]
    bias = work.state(name).reshape(shape)
    work.check_read_once(node, name)
    changes, ends = map_after(work, node, Elementwise(torch.ones_like(bias), bias))
    if not all(layer.op.parameters.get("bias") in original for layer, _, _ in changes.layers):
        raise Unfoldable("it would be new there too")

    def commit() -> list[fx.Node]:
        changes.make(work)
        work.drop_bias(node, name)
        return ends

    return Planned(op.inputs, tuple(ends), commit, 1.0)
