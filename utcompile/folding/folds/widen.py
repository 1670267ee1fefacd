"""Widening: a parallel tuner becomes extra channels of the frozen layers parallel to it; the same operations, wider."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import fx

from utcompile.errors import UtcError
from utcompile.folding.algebra.activations import IDENTITY, Function, activation, combination, composed
from utcompile.folding.algebra.layer_chain import Chain, Squeeze, find_chain
from utcompile.folding.algebra.layers import Layer, widened_sizes
from utcompile.folding.algebra.scales import Scale, without_scale
from utcompile.folding.algebra.sinks import own_tap
from utcompile.folding.base import Fold
from utcompile.folding.case import Case
from utcompile.folding.folding import Folding, Unfoldable
from utcompile.folding.patch import Draft, Edit, Patch, Remove, Replace, Retype
from utcompile.folding.site import Site
from utcompile.graph import GraphView, Operation, Value, descendants, module_operation, value_of

CASES = (
    Case(
        "E1",
        "the same activation, parallel to one ffn: `W2 σ(W1 n + b1) + b2 + U σ(D n + d) + u = [W2, U] σ([W1; D] n + "
        "[b1; d]) + (b2 + u)`. Where the ffn is gated, `W2 (σ(W1 n + b1) ⊙ (W3 n + b3))`, the gate gets rows of "
        "zeros with bias 1; W1 and W3 may be halves of one packed layer",
        "σ's attributes are the same; PReLU is refused for its parameter per channel",
        "at 1, ReLU is 1 and GELU 0.841: one elementwise function cannot be both",
        "folding/test_fold.py::test_a_gate_or_another_activation_is_kept[none-relu]",
    ),
    Case(
        "E1",
        "",
        "the tuner reads what `W1` reads",
        "U-Tuning's own form reads the stream x, and `W1` reads LayerNorm(x): `[W1; D]` has one input, not two",
        "folding/test_fold.py::test_reading_the_stream_before_the_norm_is_kept",
    ),
    Case(
        "E1",
        "",
        "between the layers only layout, dropout (off), frozen affine maps",
        "a LayerNorm or GRN of the hidden layer averages over the new channels too",
        "folding/test_widen.py::test_kept_with_its_reason[a norm of the hidden layer]",
    ),
    Case(
        "E1",
        "",
        "each value in between is read once, no weight is shared",
        "a second reader would see more channels",
        "folding/test_widen.py::test_kept_with_its_reason[a hidden value that is read twice]",
    ),
    Case(
        "E1",
        "",
        "`scale` is not `input`; the tuner is `parallel`",
        "a gate that depends on x is no constant factor of U; a sequential adapter reads what the ffn made",
        "folding/test_fold.py::test_a_gate_or_another_activation_is_kept[input-same as a]",
    ),
    Case(
        "E2",
        "another activation, `σ_T(z) = α σ(z) + β σ(−z)`: twice the channels, `[D; −D]`, `[αU, βU]`",
        "a linear tuner parallel to GELU (both forms), SiLU, Hardswish: `σ(z) − σ(−z) = z`, for `Φ(z) + Φ(−z) = 1`; "
        "identity, ReLU and LeakyReLU parallel to ReLU or LeakyReLU",
        "ReLU6: `relu6(8) − relu6(−8) = 6`. ReLU parallel to GELU: `gelu(−1) = −0.159`",
        "folding/test_widen.py::test_kept_with_its_reason[a linear tuner parallel to ReLU6]",
    ),
    Case(
        "E3",
        "a depthwise convolution between, and at most one activation on each side (inverted residuals, Mix-FFN): "
        "the new channels have the delta kernel δ, and σ is `σ'∘σ`",
        "the second activation leaves alone what the first makes: ReLU or sigmoid, then ReLU; ReLU6 twice; ReLU, "
        "then ReLU6; or there is only one",
        "`silu(1) = 0.731, silu(silu(1)) = 0.493`. Hardswish: 0.667 and 0.407",
        "folding/test_widen.py::test_kept_with_its_reason[SiLU twice]",
    ),
    Case(
        "E3",
        "",
        "δ is at the tap that meets the input at stride · p, and the tuner strides as the convolutions do",
        "padded by 1 with dilation 2, taps meet p − 1 and p + 1, and none p",
        "folding/test_widen.py::test_kept_with_its_reason[no tap at its own position]",
    ),
    Case(
        "E3",
        "",
        "one filter per channel",
        "with two, δ would double the new channels",
        "folding/test_widen.py::test_kept_with_its_reason[several filters a channel]",
    ),
    Case(
        "E4",
        "a squeeze-excite between: `(v ⊙ s(mean v))` with s's new columns zero and its new rows zero with bias 40 "
        "(hard sigmoid: 4)",
        "its gate is a sigmoid or hard sigmoid: `1 / (1 + e⁻⁴⁰)` is 1 in float64",
        "tanh and softmax gates are never 1, and would scale U by data",
        "folding/test_widen.py::test_kept_with_its_reason[a gate that is never open]",
    ),
    Case(
        "E5",
        "a frozen affine map (BatchNorm) before `W1`, and the tuner reads what it reads: `W1 (f x + t) + b1 = (W1 "
        "f) x + (W1 t + b1)`",
        "nothing else reads its result",
        "the other way, `D x = (D/f) (f x)`, divides by f, which may be 0",
        "folding/test_widen.py::test_kept_with_its_reason[a BatchNorm that something else reads too]",
    ),
)

_OPEN = {"sigmoid": 40.0, "hardsigmoid": 4.0}  # a gate's input at which it is 1 in floating point


class Widen(Fold):
    """A tuner becomes more hidden channels of the layers parallel to it.

    D, d are the tuner's Down; U, u are its Up times its scale; σ_T is its activation, and σ that of the layers:

        W2 σ(W1 n + b1) + b2  +  U σ(D n + d) + u  =  [W2, U] σ([W1; D] n + [b1; d]) + (b2 + u)

    Frozen affine maps between (BatchNorm in eval, LayerScale γ) are first absorbed into the layer before them: into W2,
    never by dividing U by γ, which may be 1e-6.
    """

    status = "widened"
    trusted = True
    cases = CASES

    def requires(self, site: Site, model: Folding) -> bool:
        """A parallel tuner that is linear or a bottleneck."""
        try:
            return site.total is not None and (site.linear is not None or site.bottleneck is not None)
        except UtcError:
            return True  # it is one that cannot be widened; planning says why

    def plan(self, site: Site, model: Folding) -> Patch:
        """Find out whether the tuner can go into the chain of layers parallel to it.

        Raises:
            Unfoldable: the chain, the activation or the tuner's form does not allow it.
        """
        channels = _channels(site)
        call, total, source = site.call, site.total, site.source
        end = None if total is None else total.args[0]
        assert total is not None and isinstance(end, fx.Node)
        chain = find_chain(model, end, source)
        view = model.view()
        channels = _matched(chain, view, channels)
        tap = _check_depthwise(chain, channels)
        if chain.squeeze is not None and chain.squeeze.gate.name not in _OPEN:
            raise Unfoldable(f"the squeeze-excite's gate is {chain.squeeze.gate.name}, which is never 1")
        hidden = chain.last.weight.shape[1]
        wider = hidden + len(channels.down)

        draft = Draft()
        draft.edits += [edit for node, axis in chain.moved for edit in widened_sizes(node, axis, hidden, wider)]
        _write_layers(draft, chain, channels, tap)
        draft.edits += _widened_values(chain, hidden, len(channels.down))
        draft.edits += [without_scale(s.node) for layer in chain.layers for s in chain.scales[layer.node]]
        draft.edits += [without_scale(scale.node) for scale in chain.entry]
        draft.edits += [Replace(total, by=end), Remove(call)]
        return draft.patch((view.without_layout(source),), (total,))


@dataclass(frozen=True)
class Channels:
    """`up · activation(down · x + down_bias) + up_bias`, in float64 on the CPU; down reads every stride-th position."""

    down: torch.Tensor
    down_bias: torch.Tensor
    up: torch.Tensor
    up_bias: torch.Tensor
    activation: Function
    stride: tuple[int, ...]


def _channels(site: Site) -> Channels:
    """A parallel tuner as new channels: a bottleneck's own, or those of anything linear, by its singular values.

    Raises:
        Unfoldable: it is neither, or its bottleneck cannot be widened.
    """
    linear = site.linear
    if linear is not None and linear.matrix.dim() == 2:
        u, s, v = torch.linalg.svd(linear.matrix, full_matrices=False)
        rank = max(1, int((s > 1e-14 * s[0]).sum()))
        root = s[:rank].sqrt()
        down, up = root[:, None] * v[:rank], u[:, :rank] * root
        return Channels(down, down.new_zeros(rank), up, linear.shift, IDENTITY, ())
    try:
        found = site.bottleneck
    except UtcError as error:
        raise Unfoldable(error.what) from error
    if found is None:
        raise Unfoldable(f"a {site.tuned.tuner} is neither linear nor a bottleneck")
    name, attributes = module_operation(found.activation)
    down, up = (t.detach().cpu().double() for t in (found.down, found.up))
    biases = [
        like.new_zeros(len(like)) if bias is None else bias.detach().cpu().double()
        for bias, like in ((found.down_bias, down), (found.up_bias, up))
    ]
    function = activation(Operation(name, (), attributes))
    return Channels(down, biases[0], up, biases[1], function, found.stride)


def _matched(chain: Chain, view: GraphView, mine: Channels) -> Channels:
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


def _check_depthwise(chain: Chain, bottleneck: Channels) -> tuple[int, ...]:
    """The tap at which the delta of the new channels is 1.

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
        raise Unfoldable(
            f"it strides by {list(bottleneck.stride) or 1}, the layers parallel to it by {list(stride) or 1}"
        )
    return tap


def _strides(layer: Layer) -> tuple[int, ...]:
    stride = layer.op.attributes.get("stride", ())
    return tuple(stride) if isinstance(stride, (tuple, list)) else (stride,)


# --- changes ---------------------------------------------------------------------------------------------------------

_Parameters = tuple[torch.Tensor, torch.Tensor]  # a layer's weight and bias


def _write_layers(draft: Draft, chain: Chain, new: Channels, tap: tuple[int, ...]) -> None:
    """Every layer of a chain with its new channels, and with the frozen affine maps behind it."""
    own = {layer.node: _absorbed(layer, chain.scales[layer.node]) for layer in chain.layers}
    for layer in filter(None, (chain.first, chain.gate)):
        own[layer.node] = _entered(own[layer.node], chain.entry)
    widened = _widened(chain, own, new, tap)
    for layer in chain.layers:
        layer.resize(draft, *widened[layer.node])


def _absorbed(layer: Layer, scales: list[Scale]) -> _Parameters:
    """`f·(W z + b) + t = (f·W) z + (f·b + t)`."""
    weight, bias = layer.weight, layer.bias
    for scale in scales:
        f, t = (v.reshape(-1).expand(len(bias)) for v in (scale.map.factor, scale.map.shift))
        weight = f.reshape(-1, *[1] * (weight.dim() - 1)) * weight
        bias = f * bias + t
    return weight, bias


def _entered(own: _Parameters, entry: list[Scale]) -> _Parameters:
    """`W (f x + t) + b = (W f) x + (W t + b)`."""
    weight, bias = own
    for scale in entry:
        f, t = (v.reshape(-1).expand(weight.shape[1]) for v in (scale.map.factor, scale.map.shift))
        columns = [1, -1, *[1] * (weight.dim() - 2)]
        weight, bias = weight * f.reshape(columns), bias + (weight * t.reshape(columns)).flatten(1).sum(1)
    return weight, bias


def _widened(
    chain: Chain, own: dict[fx.Node, _Parameters], new: Channels, tap: tuple[int, ...]
) -> dict[fx.Node, _Parameters]:
    first, last, width = own[chain.first.node], own[chain.last.node], len(new.down)
    found = {chain.first.node: _first_layer(chain, first, new)}
    closed, ones = _closed_gate(first[0], width)
    if chain.gate is not None:
        weight, bias = own[chain.gate.node]
        rows = closed.reshape(width, *weight.shape[1:])
        found[chain.gate.node] = torch.cat([weight, rows]), torch.cat([bias, ones])
    if chain.depthwise is not None:
        found[chain.depthwise.node] = _with_deltas(own[chain.depthwise.node], width, tap)
    if chain.squeeze is not None:
        found |= _not_squeezed(chain.squeeze, own, width)
    up = new.up.reshape(*new.up.shape, *[1] * (last[0].dim() - 2))
    found[chain.last.node] = torch.cat([last[0], up], dim=1), last[1] + new.up_bias
    return found


def _closed_gate(weight: torch.Tensor, width: int) -> _Parameters:
    """Rows of a gate that lets through: it is 1 whatever it reads."""
    return weight.new_zeros(width, *weight.shape[1:]), weight.new_ones(width)


def _first_layer(chain: Chain, own: _Parameters, new: Channels) -> _Parameters:
    weight, bias = own
    down = new.down.reshape(len(new.down), -1, *weight.shape[2:])
    if chain.split is None:
        return torch.cat([weight, down]), torch.cat([bias, new.down_bias])
    rows = [(down, new.down_bias), _closed_gate(weight, len(down))][:: 1 if chain.split[1] == 0 else -1]
    halves = list(zip(weight.chunk(2), bias.chunk(2), rows, strict=True))
    return torch.cat([t for w, _, r in halves for t in (w, r[0])]), torch.cat(
        [t for _, b, r in halves for t in (b, r[1])]
    )


def _with_deltas(own: _Parameters, width: int, tap: tuple[int, ...]) -> _Parameters:
    """A depthwise convolution that leaves its new channels alone."""
    weight, bias = own
    delta = weight.new_zeros(width, *weight.shape[1:])
    center: tuple[slice | int, ...] = (slice(None), 0, *tap)
    delta[center] = 1
    return torch.cat([weight, delta]), torch.cat([bias, weight.new_zeros(width)])


def _not_squeezed(squeeze: Squeeze, own: dict[fx.Node, _Parameters], width: int) -> dict[fx.Node, _Parameters]:
    """A squeeze-excite that does not see the new channels, and whose gate is open for them."""
    (reduce, reduce_bias), (expand, expand_bias) = own[squeeze.reduce.node], own[squeeze.expand.node]
    unseen = reduce.new_zeros(len(reduce), width, *reduce.shape[2:])
    still = expand.new_zeros(width, *expand.shape[1:])
    open_ = torch.full((width,), _OPEN[squeeze.gate.name], dtype=torch.float64)
    return {
        squeeze.reduce.node: (torch.cat([reduce, unseen], dim=1), reduce_bias),
        squeeze.expand.node: (torch.cat([expand, still]), torch.cat([expand_bias, open_])),
    }


def _widened_values(chain: Chain, before: int, width: int) -> list[Edit]:
    """The values between the layers have more channels."""
    hidden = before + width
    ends = {chain.last.node} | ({chain.squeeze.reduce.node} if chain.squeeze is not None else set())
    starts = [layer.node for layer in (chain.first, chain.gate) if layer is not None]
    starts += [chain.squeeze.expand.node] if chain.squeeze is not None else []
    sizes = {before: hidden, 2 * before: 2 * hidden} if chain.split is not None else {before: hidden}
    edits: list[Edit] = []
    for node in descendants(starts, until=ends.__contains__):
        if node not in ends and (value := value_of(node)) is not None:
            shape = tuple(sizes.get(d, d) if isinstance(d, int) else d for d in value.shape)
            edits.append(Retype(node, Value(shape, value.dtype, value.device, value.storage)))
    return edits
