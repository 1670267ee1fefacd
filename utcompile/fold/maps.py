"""Absorption of linear tuners of values: `v -> M v + c` along the channels goes into the layer before or after.

1. Sequential, into the layer that makes v: `M (W x + b) + c = (M W) x + (M b + c)`.
2. Sequential, into the layers that read v': `W (M v + c) + b = (W M) v + (W c + b)`; not where a border of zeros is
   added between, which has no c.
3. Parallel, beside the layer that reads the same x: `W x + b + M x + c = (W + M) x + (b + c)`.

A diagonal M goes into grouped and transposed convolutions and into the affine part of a norm too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from utcompile.fold.layers import Layer, Unfoldable, Work
from utcompile.graph import GraphView, Operation, tensor
from utcompile.tuners import ChannelMap, outputs_of

_CONVS = ("conv1d", "conv2d", "conv3d")
_NORMS = ("batch_norm", "layer_norm", "group_norm")


Pairs = list[tuple[fx.Node, fx.Node]]


def absorb_map(work: Work, nodes: dict[str, list[fx.Node]], linear: ChannelMap) -> Pairs:
    """Fold a tuner that is one linear map of channels.

    Returns:
        Nodes of before, and those that now yield their values.

    Raises:
        Unfoldable: no layer beside it can take it; nothing has been changed.
    """
    view = work.view()
    (tuner,) = nodes["tuner"]
    source = tuner.args[0]
    assert isinstance(source, fx.Node)
    if "sum" in nodes:
        (total,) = nodes["sum"]
        return _beside(work, view, tuner, total, source, linear)
    why = []
    for attempt in (_into_maker, _into_readers):
        try:
            return attempt(work, view, tuner, source, linear)
        except Unfoldable as reason:
            why.append(str(reason))
    raise Unfoldable("; ".join(why))


def _into_maker(work: Work, view: GraphView, tuner: fx.Node, source: fx.Node, linear: ChannelMap) -> Pairs:
    op = view.operations[source]
    layer = _layer(work, source, op)
    if len(source.users) != 1:
        raise Unfoldable(f"{source.name}, which it changes, is read in {len(source.users)} places")
    if view.channel_axis[source] != linear.axis:
        raise Unfoldable(f"the channels of {source.name} are not {op.name}'s outputs")
    weight, m = layer.weight, linear.matrix
    if m.dim() == 1:
        weight = outputs_of(op, tuple(weight.shape)).scaled(weight, m)
        bias = (m * layer.outputs_bias(len(m)).reshape(-1)).reshape(layer.outputs_bias(len(m)).shape)
    elif op.name in ("linear", *_CONVS) and op.attributes.get("groups", 1) == 1:
        weight = torch.tensordot(m, weight, ([1], [0]))
        bias = m @ layer.outputs_bias(len(m))
    else:
        raise Unfoldable(f"{op.name} before it cannot take a full matrix")
    layer.change(weight, bias + linear.shift.reshape(bias.shape))
    _remove(work, tuner, source)
    return [(tuner, source)]


def _into_readers(work: Work, view: GraphView, tuner: fx.Node, source: fx.Node, linear: ChannelMap) -> Pairs:
    changes: list[tuple[Layer, torch.Tensor, torch.Tensor]] = []
    if not tuner.users:
        raise Unfoldable("nothing reads what it makes")
    for value, reader in _read(view, tuner):
        op = view.operations[reader]
        if op.name not in ("linear", *_CONVS) or "weight" not in op.parameters or op.inputs != (value,):
            raise Unfoldable(f"{op.name} ({reader.name}), which reads it, is no linear or convolution")
        if linear.axis != (1 if op.name in _CONVS else tensor(tuner).rank - 1):
            raise Unfoldable(f"the channels of {tuner.name} are not {op.name}'s inputs")
        layer = _layer(work, reader, op)
        weight, shift = layer.weight, linear.shift
        if bool(shift.any()) and _adds_zeros(op):
            raise Unfoldable(f"{reader.name} pads its input with zeros, where the tuner's bias would be missing")
        groups = op.attributes.get("groups", 1) if op.name in _CONVS else 1
        if linear.matrix.dim() == 1:
            spread = _by_group(linear.matrix, groups, weight)
            new = weight * spread
        elif groups == 1:
            new = torch.tensordot(weight.movedim(1, -1), linear.matrix, ([-1], [0])).movedim(-1, 1)
        else:
            raise Unfoldable(f"{reader.name} is grouped and cannot take a full matrix")
        added = (weight * _by_group(shift, groups, weight)).flatten(1).sum(1)
        changes.append((layer, new, layer.bias + added))
    for layer, weight, bias in changes:
        layer.change(weight, bias)
    _remove(work, tuner, source)
    return [(layer.node, layer.node) for layer, _, _ in changes]


def _read(view: GraphView, node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """A value, or what dropout in eval makes of it, and its readers."""
    for user in node.users:
        if view.operations[user].name in ("dropout", "identity"):
            yield from _read(view, user)
        else:
            yield node, user


def _beside(work: Work, view: GraphView, tuner: fx.Node, total: fx.Node, source: fx.Node, linear: ChannelMap) -> Pairs:
    end = total.args[0]
    assert isinstance(end, fx.Node)
    op = view.operations[end]
    layer = _layer(work, end, op)
    if op.inputs != (source,) or len(end.users) != 1:
        raise Unfoldable(f"it reads {source.name}, and {end.name} beside it reads {op.inputs[0].name}")
    pointwise = "pointwise" in view.classes[end] and set(_sides(op.attributes.get("stride", 1))) == {1}
    if not pointwise or set(_sides(op.attributes.get("padding", 0))) != {0}:
        raise Unfoldable(f"{op.name} ({end.name}) beside it is no linear or pointwise convolution")
    weight = layer.weight
    matrix = torch.diag(linear.matrix) if linear.matrix.dim() == 1 else linear.matrix
    layer.change(weight + matrix.reshape(weight.shape), layer.bias + linear.shift)
    total.replace_all_uses_with(end)
    work.graph.erase_node(total)
    work.graph.erase_node(tuner)
    return [(total, end)]


def _layer(work: Work, node: fx.Node, op: Operation) -> Layer:
    known = op.name in ("linear", *_CONVS, *_NORMS) or op.name.startswith("conv_transpose")
    if not known or "weight" not in op.parameters:
        raise Unfoldable(f"{op.name} ({node.name}) has no weight that could take it")
    layer = Layer(work, node, op)
    layer.check()
    return layer


def _remove(work: Work, tuner: fx.Node, source: fx.Node) -> None:
    tuner.replace_all_uses_with(source)
    work.graph.erase_node(tuner)


def _sides(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _adds_zeros(op: Operation) -> bool:
    padding = op.attributes.get("padding", 0)
    return op.attributes.get("padding_mode", "zeros") == "zeros" and (
        padding == "same" if isinstance(padding, str) else any(p != 0 for p in _sides(padding))
    )


def _by_group(vector: torch.Tensor, groups: int, weight: torch.Tensor) -> torch.Tensor:
    """A vector of input channels, as it meets a weight `(out, in/groups, …)`."""
    rows = vector.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, 0)
    return rows.reshape(*rows.shape, *[1] * (weight.dim() - 2))
