"""Widening: a nonlinear adapter becomes extra channels of the frozen layers beside it; the same operations, wider.

With D, d the adapter's Down, U, u its Up times its scale, σ its activation:

1. Beside an ffn, reading what its first layer reads, with its activation:
   `W2 σ(W1 n + b1) + b2 + U σ(D n + d) + u = [W2, U] σ([W1; D] n + [b1; d]) + (b2 + u)`.
   Gated, `W2 (σ(W1 n + b1) ⊙ (W3 n + b3))`: the gate's extra rows are zero with bias 1.
2. Beside an inverted residual (expand, σ, depthwise of stride 1, σ', project), with σ'∘σ = σ (ReLU, ReLU6): the
   depthwise convolution's extra channels have a delta kernel.

Frozen affine maps between (BatchNorm in eval, LayerScale γ) are first absorbed into the layer before them: into W2,
never by dividing U by γ, which may be 1e-6.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from utcompile.fold.chain import Chain, Scale, find_chain
from utcompile.fold.layers import Layer, Planned, Unfoldable, Work, widen_groups
from utcompile.graph import Value, module_operation, tensor
from utcompile.rewrite import TunedSite
from utcompile.tuners import Adapter

_IDEMPOTENT = {("relu", "relu"), ("relu6", "relu6"), ("relu6", "relu")}  # σ, σ' with σ'(σ(z)) = σ(z)


def plan_widening(work: Work, site: TunedSite, nodes: dict[str, list[fx.Node]]) -> Planned:
    """Find out whether a parallel adapter can go into the chain beside it.

    Raises:
        Unfoldable: the chain, the activation or the adapter's form does not allow it.
    """
    adapter = work.root.get_submodule(site.name)
    assert isinstance(adapter, Adapter)
    bottleneck = adapter.bottleneck()  # in float64, on the CPU
    if bottleneck is None:
        raise Unfoldable("its scale depends on the input")
    (call,), (total,) = nodes["tuner"], nodes["sum"]
    if isinstance(adapter.down, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)) and set(adapter.down.stride) != {
        1
    }:
        raise Unfoldable("it strides")
    end, source = total.args[0], call.args[0]
    assert isinstance(end, fx.Node) and isinstance(source, fx.Node)
    chain = find_chain(work, end, source)
    _check_activations(chain, adapter)

    def commit() -> list[fx.Node]:
        for layer in filter(None, (chain.first, chain.gate, chain.depthwise, chain.last)):
            _absorb_scales(work, layer, chain.scales.get(layer.node, []))
        _widen_layers(chain, *bottleneck)
        _widen_values(chain, bottleneck[0].shape[0])
        end = total.args[0]  # another node now, where a scale at the end has gone
        assert isinstance(end, fx.Node)
        total.replace_all_uses_with(end)
        work.graph.erase_node(total)
        work.graph.erase_node(call)
        return [end]

    return Planned((work.view().without_layout(source),), (total,), commit)


def _check_activations(chain: Chain, adapter: Adapter) -> None:
    mine = module_operation(adapter.activation)
    (first, op), *rest = chain.activations
    if (op.name, _plain(op.attributes)) != (mine[0], _plain(mine[1])):
        raise Unfoldable(f"its activation is {mine[0]}, that of the layers beside it is {op.name} ({first.name})")
    if op.name == "prelu":
        raise Unfoldable("PReLU has a parameter a channel")
    if chain.depthwise is None:
        return
    second = rest[0][1]
    if (op.name, second.name) not in _IDEMPOTENT:
        raise Unfoldable(
            f"{second.name} after {op.name} is not idempotent, so nothing passes the depthwise convolution unchanged"
        )
    a = chain.depthwise.op.attributes
    kernel = chain.depthwise.weight.shape[2:]
    if any(s != 1 for s in _tuple(a["stride"], len(kernel))) or any(k % 2 == 0 for k in kernel):
        raise Unfoldable("the depthwise convolution strides or has an even kernel")
    if chain.depthwise.weight.shape[0] != a["groups"]:
        raise Unfoldable("the depthwise convolution has several filters a channel")


def _plain(attributes: object) -> dict[str, object]:
    return {k: v for k, v in dict(attributes).items() if k != "inplace"}  # type: ignore[call-overload]


def _tuple(value: object, length: int) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * length


def _absorb_scales(work: Work, layer: Layer, scales: list[Scale]) -> None:
    """`f·(W z + b) + t = (f·W) z + (f·b + t)`, and the map's node goes."""
    if not scales:
        return
    weight, bias = layer.weight, layer.bias
    for scale in scales:
        weight = scale.factor.reshape(-1, *[1] * (weight.dim() - 1)) * weight
        bias = scale.factor * bias + scale.shift
        work.remove_scale(scale.node)
    layer.put(weight, bias)


def _widen_layers(
    chain: Chain, down: torch.Tensor, down_bias: torch.Tensor, up: torch.Tensor, up_bias: torch.Tensor
) -> None:
    width = down.shape[0]
    first, last = chain.first, chain.last
    first.put(
        torch.cat([first.weight, down.reshape(width, -1, *first.weight.shape[2:])]), torch.cat([first.bias, down_bias])
    )
    if chain.gate is not None:
        weight = chain.gate.weight
        chain.gate.put(
            torch.cat([weight, weight.new_zeros(width, *weight.shape[1:])]),
            torch.cat([chain.gate.bias, weight.new_ones(width)]),
        )
    if chain.depthwise is not None:
        weight = chain.depthwise.weight
        delta = weight.new_zeros(width, *weight.shape[1:])
        center: Any = (slice(None), 0, *(k // 2 for k in weight.shape[2:]))
        delta[center] = 1
        chain.depthwise.put(torch.cat([weight, delta]), torch.cat([chain.depthwise.bias, weight.new_zeros(width)]))
        widen_groups(chain.depthwise.node, weight.shape[0] + width)
    last.put(
        torch.cat([last.weight, up.reshape(*up.shape, *[1] * (last.weight.dim() - 2))], dim=1), last.bias + up_bias
    )


def _widen_values(chain: Chain, width: int) -> None:
    """The values between the layers have more channels now."""
    hidden = chain.first.weight.shape[0]
    node_set = {chain.first.node}
    frontier = [chain.first.node] + ([chain.gate.node] if chain.gate else [])
    while frontier:
        node = frontier.pop()
        value = tensor(node)
        shape = tuple(hidden if d == hidden - width else d for d in value.shape)
        node.meta["value"] = Value(shape, value.dtype, value.device, value.storage)
        for user in node.users:
            if user not in node_set and user is not chain.last.node and "value" in user.meta:
                node_set.add(user)
                frontier.append(user)
