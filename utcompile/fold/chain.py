"""The straight chain of frozen operations beside which an adapter stands, from the value it is added to back to the
value it reads: `h`, its activation, perhaps a depthwise convolution, the last layer `c`, and the scales in between."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import torch
from torch import fx

from utcompile.fold.layers import Layer, Unfoldable, Work
from utcompile.graph import GraphView, Operation, is_state, value_of


@dataclass
class Chain:
    """What stands between the value an adapter reads and the value it is added to.

    Attributes:
        first: the layer that reads what the adapter reads.
        gate: a second layer beside it, whose result multiplies the activated one (gated ffns).
        activations: the activations, first to last.
        depthwise: the depthwise convolution between two activations.
        last: the layer whose result is added to the stream.
        scales: after each of the layers, the frozen affine maps of its result, in order: node, factor, shift.
    """

    first: Layer
    last: Layer
    activations: list[tuple[fx.Node, Operation]]
    depthwise: Layer | None = None
    gate: Layer | None = None
    scales: dict[fx.Node, list[Scale]] = field(default_factory=dict)


@dataclass
class Scale:
    """A frozen affine map of channels, `factor · z + shift`: BatchNorm in eval, LayerScale, a constant."""

    node: fx.Node
    factor: torch.Tensor
    shift: torch.Tensor


def find_chain(work: Work, end: fx.Node, source: fx.Node) -> Chain:
    """Walk back from the value an adapter is added to.

    Raises:
        Unfoldable: what stands there is no chain that can be widened.
    """
    view = work.view()
    scales: dict[fx.Node, list[Scale]] = {}
    while end.meta.get("role") in ("sum", "branch"):  # other tuners beside the same branch
        _single(end)
        end = end.all_input_nodes[end.meta["role"] == "branch"]
    last_node = _walk(work, view, end, scales, ("pointwise",))
    last = Layer(work, last_node, view.operations[last_node])
    inner = view.operations[last_node].inputs[0]
    gate = None
    product = _through(view, inner)
    if view.operations[product].name == "mul" and len(view.operations[product].inputs) == 2:
        activated, gate = _gated(work, view, product, scales)
    else:
        activated = _walk(work, view, inner, scales, ("activation",), scaled=False)
    activations = [activated]
    before = _walk(work, view, view.operations[activated].inputs[0], scales, ("pointwise", "depthwise_conv"))
    depthwise = None
    if "depthwise_conv" in view.classes[before]:
        if gate is not None:
            raise Unfoldable("a gate and a depthwise convolution stand between")
        depthwise = Layer(work, before, view.operations[before])
        activations.insert(0, _walk(work, view, depthwise.op.inputs[0], scales, ("activation",), scaled=False))
        before = _walk(work, view, view.operations[activations[0]].inputs[0], scales, ("pointwise",))
    first = Layer(work, before, view.operations[before])
    for layer in filter(None, (first, gate)):
        if view.without_layout(layer.op.inputs[0]) is not view.without_layout(source):
            raise Unfoldable(
                f"it reads {source.name}, and the layer beside it, {layer.node.name}, reads {layer.op.inputs[0].name}"
            )
    chain = Chain(first, last, [(n, view.operations[n]) for n in activations], depthwise, gate, scales)
    for layer in filter(None, (first, depthwise, gate, last)):
        layer.check()
    return chain


def _gated(work: Work, view: GraphView, product: fx.Node, scales: dict[fx.Node, list[Scale]]) -> tuple[fx.Node, Layer]:
    """The activation and the second layer of `σ(W1 n) ⊙ (W3 n)`."""
    _single(product)
    a, b = (_through(view, n) for n in view.operations[product].inputs)
    for activated, other in ((a, b), (b, a)):
        if "activation" in view.classes[activated] and "pointwise" in view.classes[other]:
            for node in (activated, other):
                _single(node)
            return activated, Layer(work, other, view.operations[other])
    raise Unfoldable(f"{product.name} multiplies two values, of which none is an activation and the other a layer")


def _walk(
    work: Work,
    view: GraphView,
    node: fx.Node,
    scales: dict[fx.Node, list[Scale]],
    ends: tuple[str, ...],
    scaled: bool = True,
) -> fx.Node:
    """Back through layout, dropout and frozen affine maps to an operation of one of the wanted classes."""
    found: list[Scale] = []
    while True:
        _single(node)
        op = view.operations[node]
        if view.classes[node] & set(ends):
            scales[node] = found[::-1]
            return node
        scale = _scale(work, view, node, op) if scaled else None
        if scale is not None:
            found.append(scale)
        elif not view.classes[node] & {"layout", "dropout"} or not op.inputs:
            raise Unfoldable(f"{op.name} ({node.name}) stands between")
        node = op.inputs[0]


def _through(view: GraphView, node: fx.Node) -> fx.Node:
    """Back through layout and dropout."""
    while view.classes[node] & {"layout", "dropout"}:
        _single(node)
        node = view.operations[node].inputs[0]
    return node


def _single(node: fx.Node) -> None:
    if len(node.users) != 1:
        readers = ", ".join(u.name for u in list(node.users)[:3])
        raise Unfoldable(f"{node.name} is read in {len(node.users)} places ({readers})")


def _scale(work: Work, view: GraphView, node: fx.Node, op: Operation) -> Scale | None:
    """Read a node as an affine map of its channels, where it is one."""
    axis, value = view.channel_axis[node], value_of(node)
    if axis is None or value is None or not isinstance(value.shape[axis], int):
        return None
    channels = value.shape[axis]
    assert isinstance(channels, int)
    ones = torch.ones(channels, dtype=torch.float64)
    if op.name == "batch_norm" and not op.attributes.get("training", False):
        if "running_mean" not in op.parameters:
            return None
        mean, variance = (work.state(op.parameters[k]) for k in ("running_mean", "running_var"))
        factor = (variance + op.attributes["eps"]).rsqrt()
        if "weight" in op.parameters:
            factor = factor * work.state(op.parameters["weight"])
        shift = -mean * factor
        if "bias" in op.parameters:
            shift = shift + work.state(op.parameters["bias"])
        return Scale(node, factor, shift)
    if op.name not in ("mul", "div") or len(op.inputs) != 1:
        return None
    others = [a for a in node.args if a is not op.inputs[0]]
    if len(others) != 1:
        return None
    if isinstance(others[0], fx.Node):
        if not is_state(others[0]):
            return None
        vector = _as_channels(work.evaluate(others[0]), value.rank, axis, channels)
        if vector is None:
            return None
    elif isinstance(others[0], (int, float)):
        vector = ones * others[0]
    else:
        return None
    if op.name == "div":
        if node.args[0] is not op.inputs[0]:
            return None
        vector = 1 / vector
    return Scale(node, vector, torch.zeros_like(vector))


def _as_channels(tensor: torch.Tensor, rank: int, axis: int, channels: int) -> torch.Tensor | None:
    """A tensor that broadcasts over everything but the channels, as a vector of them."""
    if tensor.dim() > rank:
        return None
    shape = (1,) * (rank - tensor.dim()) + tuple(tensor.shape)
    if prod(shape) == 1:
        return tensor.reshape(1).expand(channels).clone()
    if shape[axis] != channels or prod(shape) != channels:
        return None
    return tensor.reshape(channels)
