"""Widening: a parallel tuner becomes extra channels of the frozen layers beside it; the same operations, wider.

With D, d the tuner's Down, U, u its Up times its scale, σ_T its activation, and σ that of the layers beside it
(cases of docs/folding.md):

E1. Beside an ffn that reads what the tuner reads, σ_T = σ:
    `W2 σ(W1 n + b1) + b2 + U σ(D n + d) + u = [W2, U] σ([W1; D] n + [b1; d]) + (b2 + u)`.
    Gated, `W2 (σ(W1 n + b1) ⊙ (W3 n + b3))`: the gate's extra rows are zero with bias 1, packed or not.
E2. Where σ_T is another, but `σ_T(z) = α σ(z) + β σ(−z)`: twice the channels, `[D; −D]` and `[αU, βU]`. So a linear
    tuner goes beside GELU, SiLU, Hardswish (`σ(z) − σ(−z) = z`) and ReLU, and LeakyReLU beside ReLU.
E3. With a depthwise convolution between (inverted residuals, Mix-FFN): its extra channels have a delta kernel, at the
    tap that meets the input at stride · p, so the tuner strides as it does. With σ before and σ' behind it, what counts
    is σ'∘σ; known ones are those where the second leaves alone what the first makes: `relu(relu(z)) = relu(z)`.
E4. With a squeeze-excite between: the new channels are not squeezed (zeros), and their gate is open: the sigmoid of 40
    is 1 in floating point.
E5. A frozen affine map between the value that the tuner reads and the first layer (a BatchNorm) goes into that layer.

Frozen affine maps between (BatchNorm in eval, LayerScale γ) are first absorbed into the layer before them: into W2,
never by dividing U by γ, which may be 1e-6.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from utcompile.fold.activations import IDENTITY, Function, activation, combination, composed
from utcompile.fold.chain import Chain, find_chain
from utcompile.fold.layers import Layer, Planned, Unfoldable, Work, widen_groups
from utcompile.fold.scales import Scale
from utcompile.fold.sinks import own_tap
from utcompile.graph import GraphView, Operation, Role, Value, info, module_operation, tensor
from utcompile.rewrite import TunedSite
from utcompile.tuners import Adapter, Tuner

_OPEN = {"sigmoid": 40.0, "hardsigmoid": 4.0}  # a gate's input at which it is 1 in floating point


@dataclass(frozen=True)
class Bottleneck:
    """`up · activation(down · x + down_bias) + up_bias`, in float64 on the CPU; down reads every stride-th position."""

    down: torch.Tensor
    down_bias: torch.Tensor
    up: torch.Tensor
    up_bias: torch.Tensor
    activation: Function
    stride: tuple[int, ...]


def bottleneck_of(tuner: Tuner) -> Bottleneck | None:
    """A parallel tuner as a bottleneck, where it is one: an adapter, or anything linear, by its singular values.

    Raises:
        Unfoldable: it is one whose scale depends on the input.
    """
    linear = tuner.channel_map()
    if linear is not None and linear.matrix.dim() == 2:
        u, s, v = torch.linalg.svd(linear.matrix, full_matrices=False)
        rank = max(1, int((s > 1e-14 * s[0]).sum()))
        root = s[:rank].sqrt()
        down, up = root[:, None] * v[:rank], u[:, :rank] * root
        return Bottleneck(down, down.new_zeros(rank), up, linear.shift, IDENTITY, ())
    if not isinstance(tuner, Adapter):
        return None
    parts = tuner.bottleneck()
    if parts is None:
        raise Unfoldable("its scale depends on the input")
    stride = tuner.strides or getattr(tuner.down, "stride", ())
    name, attributes = module_operation(tuner.activation)
    return Bottleneck(*parts, activation(Operation(name, (), attributes)), tuple(stride))


def plan_widening(work: Work, site: TunedSite, nodes: dict[Role, list[fx.Node]]) -> Planned:
    """Find out whether a parallel tuner can go into the chain beside it.

    Raises:
        Unfoldable: the chain, the activation or the tuner's form does not allow it.
    """
    tuner = work.root.get_submodule(site.name)
    assert isinstance(tuner, Tuner)
    bottleneck = bottleneck_of(tuner)
    if bottleneck is None:
        raise Unfoldable(f"a {site.tuner} is neither linear nor a bottleneck")
    (call,), (total,) = nodes[Role.TUNER], nodes[Role.SUM]
    end, source = total.args[0], call.args[0]
    assert isinstance(end, fx.Node) and isinstance(source, fx.Node)
    chain = find_chain(work, end, source)
    view = work.view()
    bottleneck = _matched(chain, view, bottleneck)
    tap = _check_depthwise(chain, bottleneck)
    if chain.squeeze is not None and chain.squeeze.gate.name not in _OPEN:
        raise Unfoldable(f"the squeeze-excite's gate is {chain.squeeze.gate.name}, which is never 1")
    hidden = chain.last.weight.shape[1]
    sizes = [_resized(node, axis, hidden, hidden + len(bottleneck.down)) for node, axis in chain.moved]

    def commit() -> list[fx.Node]:
        for (node, _), args in zip(chain.moved, sizes, strict=True):
            node.args = args
        for layer in chain.layers:
            _absorb_scales(work, layer, chain.scales[layer.node])
        _enter(work, chain)
        _widen_layers(chain, bottleneck, tap)
        _widen_values(chain, len(bottleneck.down))
        end = total.args[0]  # another node now, where a scale at the end has gone
        assert isinstance(end, fx.Node)
        total.replace_all_uses_with(end)
        work.graph.erase_node(total)
        work.graph.erase_node(call)
        return [end]

    return Planned((view.without_layout(source),), (total,), commit)


def _matched(chain: Chain, view: GraphView, mine: Bottleneck) -> Bottleneck:
    """The bottleneck with the activation of the chain."""
    before, after = (activation(view.operations[n]) if n is not None else IDENTITY for n in (chain.before, chain.after))
    theirs = composed(before, after)
    alpha, beta = combination(mine.activation, theirs)
    if not beta:
        return replace(mine, up=alpha * mine.up, activation=theirs)
    down, bias = torch.cat([mine.down, -mine.down]), torch.cat([mine.down_bias, -mine.down_bias])
    return replace(
        mine, down=down, down_bias=bias, up=torch.cat([alpha * mine.up, beta * mine.up], 1), activation=theirs
    )


# --- conditions ------------------------------------------------------------------------------------------------------


def _check_depthwise(chain: Chain, bottleneck: Bottleneck) -> tuple[int, ...]:
    """The tap at which the delta of the new channels stands.

    Raises:
        Unfoldable: there is none, or the tuner strides otherwise.
    """
    stride = _strides(chain.first)
    tap: tuple[int, ...] = ()
    if chain.depthwise is not None:
        layer, own = chain.depthwise, _strides(chain.depthwise)
        stride = tuple(a * b for a, b in zip(stride or (1,) * len(own), own, strict=True))
        if layer.weight.shape[0] != layer.op.attributes["groups"]:
            raise Unfoldable("the depthwise convolution has several filters a channel")
        tap = own_tap(layer.node, layer.op, tuple(layer.weight.shape[2:]), chain.padding)
    mine = {1, *bottleneck.stride} - {1}, {1, *stride} - {1}
    if mine[0] != mine[1]:
        raise Unfoldable(f"it strides by {list(bottleneck.stride) or 1}, the layers beside it by {list(stride) or 1}")
    return tap


def _strides(layer: Layer) -> tuple[int, ...]:
    stride = layer.op.attributes.get("stride", ())
    return tuple(stride) if isinstance(stride, (tuple, list)) else (stride,)


def _resized(node: fx.Node, axis: int, before: int, after: int) -> tuple[Any, ...]:
    """A node's arguments, where they state the number of hidden channels.

    Raises:
        Unfoldable: they do so in a way that is not understood.
    """
    name, shape = str(node.target), tensor(node).shape
    states = node.op == "call_method" and name in ("reshape", "view", "expand", "unflatten")
    states |= getattr(node.target, "__name__", "") == "reshape"
    if not states or shape[axis] != before:
        return node.args
    listed = len(node.args) == 2 and isinstance(node.args[1], (tuple, list))
    sizes: list[Any] = list(node.args[1]) if listed else list(node.args[1:])  # type: ignore[arg-type]
    if len(sizes) != len(shape):
        raise Unfoldable(f"{node.name} states the hidden size in a way that is not understood")
    if sizes[axis] == before:
        sizes[axis] = after
    return (node.args[0], sizes) if listed else (node.args[0], *sizes)


# --- changes ---------------------------------------------------------------------------------------------------------


def _absorb_scales(work: Work, layer: Layer, scales: list[Scale]) -> None:
    """`f·(W z + b) + t = (f·W) z + (f·b + t)`, and the map's node goes."""
    if not scales:
        return
    weight, bias = layer.weight, layer.bias
    for scale in scales:
        f, t = (v.reshape(-1).expand(len(bias)) for v in (scale.map.factor, scale.map.shift))
        weight = f.reshape(-1, *[1] * (weight.dim() - 1)) * weight
        bias = f * bias + t
        work.remove_scale(scale.node)
    layer.put(weight, bias)


def _enter(work: Work, chain: Chain) -> None:
    """`W (f x + t) + b = (W f) x + (W t + b)`, in every layer that reads it."""
    for scale in chain.entry:
        for layer in filter(None, (chain.first, chain.gate)):
            weight, bias = layer.weight, layer.bias
            f, t = (v.reshape(-1).expand(weight.shape[1]) for v in (scale.map.factor, scale.map.shift))
            columns = [1, -1, *[1] * (weight.dim() - 2)]
            layer.put(weight * f.reshape(columns), bias + (weight * t.reshape(columns)).flatten(1).sum(1))
        work.remove_scale(scale.node)


def _widen_layers(chain: Chain, new: Bottleneck, tap: tuple[int, ...]) -> None:
    first, last, width = chain.first, chain.last, len(new.down)
    weight, bias = first.weight, first.bias
    down = new.down.reshape(width, -1, *weight.shape[2:])
    closed, ones = weight.new_zeros(width, *weight.shape[1:]), weight.new_ones(width)  # a gate that lets through
    if chain.split is not None:
        rows = [(down, new.down_bias), (closed, ones)][:: 1 if chain.split[1] == 0 else -1]
        halves = zip(weight.chunk(2), bias.chunk(2), rows, strict=True)
        parts = [(w, b, *row) for w, b, row in halves]
        weight, bias = (
            torch.cat([t for w, _, r, _ in parts for t in (w, r)]),
            torch.cat([t for _, b, _, r in parts for t in (b, r)]),
        )
        first.put(weight, bias)
    else:
        first.put(torch.cat([weight, down]), torch.cat([bias, new.down_bias]))
    if chain.gate is not None:
        gate = chain.gate
        gate.put(torch.cat([gate.weight, closed.reshape(width, *gate.weight.shape[1:])]), torch.cat([gate.bias, ones]))
    if chain.depthwise is not None:
        _widen_depthwise(chain.depthwise, width, tap)
    if chain.squeeze is not None:
        reduce, expand = chain.squeeze.reduce, chain.squeeze.expand
        zeros = reduce.weight.new_zeros(len(reduce.weight), width, *reduce.weight.shape[2:])
        reduce.put(torch.cat([reduce.weight, zeros], dim=1), reduce.bias)
        zeros = expand.weight.new_zeros(width, *expand.weight.shape[1:])
        open_ = torch.full((width,), _OPEN[chain.squeeze.gate.name], dtype=torch.float64)
        expand.put(torch.cat([expand.weight, zeros]), torch.cat([expand.bias, open_]))
    up = new.up.reshape(*new.up.shape, *[1] * (last.weight.dim() - 2))
    last.put(torch.cat([last.weight, up], dim=1), last.bias + new.up_bias)


def _widen_depthwise(layer: Layer, width: int, tap: tuple[int, ...]) -> None:
    weight = layer.weight
    delta = weight.new_zeros(width, *weight.shape[1:])
    center: Any = (slice(None), 0, *tap)
    delta[center] = 1
    layer.put(torch.cat([weight, delta]), torch.cat([layer.bias, weight.new_zeros(width)]))
    widen_groups(layer.node, weight.shape[0] + width)


def _widen_values(chain: Chain, width: int) -> None:
    """The values between the layers have more channels now."""
    hidden = chain.last.weight.shape[1]
    before = hidden - width
    ends = {chain.last.node}
    squeezed = {chain.squeeze.reduce.node} if chain.squeeze is not None else set()
    frontier = [layer.node for layer in (chain.first, chain.gate) if layer is not None]
    frontier += [chain.squeeze.expand.node] if chain.squeeze is not None else []
    reached = set(frontier)
    sizes = {before: hidden, 2 * before: 2 * hidden} if chain.split is not None else {before: hidden}
    while frontier:
        node = frontier.pop()
        if info(node).value is not None:
            value = tensor(node)
            shape = tuple(sizes.get(d, d) if isinstance(d, int) else d for d in value.shape)
            info(node).value = Value(shape, value.dtype, value.device, value.storage)
        for user in node.users:
            if user not in reached | ends | squeezed:
                reached.add(user)
                frontier.append(user)
