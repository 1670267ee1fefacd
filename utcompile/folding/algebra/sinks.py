"""Layers that take an affine map of channels into their parameters: of their output, of their input, or parallel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from utcompile.folding.algebra.layers import Layer
from utcompile.folding.algebra.travel import Elementwise, Map, Mixing
from utcompile.folding.case import Case
from utcompile.folding.folding import Folding, Unfoldable
from utcompile.graph import Operation, tensor
from utcompile.ops import Trait, having
from utcompile.tuners import outputs_of

CASES = (
    Case(
        "A1",
        "after a layer: `M (W x + b) + c = (M W) x + (M b + c)`",
        "nothing else sees what T changes",
        "a second reader of v would see `T(v)`",
        "folding/test_through.py::test_kept_with_its_reason[ssf after a layer that something else reads]",
    ),
    Case(
        "A1",
        "",
        "a full M needs a linear or an ungrouped convolution; a diagonal one goes into grouped and transposed "
        "convolutions, norms, BatchNorm and embeddings too",
        "with groups, an output channel sees a part of the inputs, and `M W` all of them",
        "folding/test_through.py::test_kept_with_its_reason[rep_adapter after a grouped convolution]",
    ),
    Case(
        "A2",
        "before a layer: `W (M v + c) + b = (W M) v + (W c + b)`, in every layer that reads it",
        "linear or convolution (a diagonal M into a frozen BatchNorm and, without c, a transposed convolution)",
        "a transposed convolution lays c over itself, differently at the border",
        "folding/test_through.py::test_kept_with_its_reason[ssf on to a transposed convolution]",
    ),
    Case(
        "A2",
        "",
        "if c ≠ 0, no zero padding",
        "a 3×3 kernel of ones, padding 1, c = 1: inside, nine ones are added, in a corner four. Reflected padding "
        "is harmless",
        "folding/test_through.py::test_kept_with_its_reason[ssf before zeros]",
    ),
    Case(
        "A3",
        "parallel to a layer: `W x + b + M x + c = (W + M) x + (b + c)`",
        "the layer reads the same x at the same stride; of a k×k kernel the tap that meets x at its own position "
        "takes M; grouped, M has the groups' blocks",
        "the tap next to it would add the neighbour's value",
        "folding/test_through.py::test_kept_beside_a_layer[no tap at its own position]",
    ),
)

_CONVS = having(Trait.CONV)
_TRANSPOSED = having(Trait.CONV_TRANSPOSE)
DENSE = having(Trait.OUTPUTS_FIRST)  # a linear, or a convolution
_LAYERS = having(Trait.LAYER)

Parameters = tuple[Layer, torch.Tensor, torch.Tensor | None]  # a layer, its weight to be, its bias to be


def after_layer(model: Folding, node: fx.Node, op: Operation, m: Map) -> Parameters:
    """The parameters with which an operation yields `m` of what it yields now.

    Raises:
        Unfoldable: it has none that could.
    """
    takes = op.name in _LAYERS
    if not takes or "weight" not in op.parameters or (op.name == "instance_norm" and "bias" not in op.parameters):
        raise Unfoldable(f"{op.name} ({node.name}) has no weight that could take it")
    layer = _layer(model, node, op)
    weight = layer.weight
    if isinstance(m, Mixing):
        if op.name not in DENSE or op.attributes.get("groups", 1) != 1:
            raise Unfoldable(f"{op.name} ({node.name}) cannot take a full matrix")
        if m.axis != (1 if op.name in _CONVS else tensor(node).rank - 1):
            raise Unfoldable(f"the channels that it mixes are not {op.name}'s outputs")
        return layer, torch.tensordot(m.matrix, weight, ([1], [0])), m.matrix @ layer.bias + m.shift
    factor, shift = (_of_outputs(node, op, weight, t) for t in (m.factor, m.shift))
    if op.name == "embedding":  # every row is a result
        return layer, weight * factor + shift, None
    if bool(shift.any()) and op.name == "rms_norm":
        raise Unfoldable(f"rms_norm ({node.name}) has no bias that could take its shift")
    bias = layer.outputs_bias(factor.numel()).reshape(factor.shape)
    scaled = outputs_of(op, tuple(weight.shape)).scaled(weight, factor.flatten())
    return layer, scaled, factor * bias + shift


def before_layer(model: Folding, node: fx.Node, op: Operation, value: fx.Node, m: Map) -> Parameters:
    """The parameters with which an operation makes of `value` what it makes of `m` of it now.

    Raises:
        Unfoldable: it has none that could.
    """
    transposed = op.name in _TRANSPOSED
    takes = op.name in DENSE or op.name == "batch_norm" or transposed
    if not takes or "weight" not in op.parameters or op.inputs != (value,):
        raise Unfoldable(f"{op.name} ({node.name}), which reads it, is no linear or convolution")
    axis = tensor(value).rank - 1 if op.name == "linear" else 1
    layer = _layer(model, node, op)
    weight = layer.weight
    if isinstance(m, Mixing):
        if m.axis != axis or op.name == "batch_norm":
            raise Unfoldable(f"the channels that it mixes are not {op.name}'s inputs")
        if op.attributes.get("groups", 1) != 1 or transposed:
            raise Unfoldable(f"{node.name} is grouped or transposed and cannot take a full matrix")
        _check_border(node, op, m.shift)
        new = torch.tensordot(weight.movedim(1, -1), m.matrix, ([-1], [0])).movedim(-1, 1)
        return layer, new, layer.bias + (weight * _by_input(m.shift, 1, weight)).flatten(1).sum(1)
    count = tensor(value).shape[axis]
    assert isinstance(count, int)
    factor, shift = (_vector(node, t, axis, count) for t in (m.factor, m.shift))
    if op.name == "batch_norm":
        return _before_batch_norm(model, layer, factor, shift)
    if transposed:
        if bool(shift.any()):
            raise Unfoldable(f"{node.name} is transposed: what it makes of a shift is no constant")
        return layer, weight * factor.reshape(-1, *[1] * (weight.dim() - 1)), None
    _check_border(node, op, shift)
    groups = op.attributes.get("groups", 1) if op.name in _CONVS else 1
    added = (weight * _by_input(shift, groups, weight)).flatten(1).sum(1)
    return layer, weight * _by_input(factor, groups, weight), layer.bias + added


def _before_batch_norm(model: Folding, layer: Layer, factor: torch.Tensor, shift: torch.Tensor) -> Parameters:
    """`w (m v + c − μ)/σ + b = w m (v − μ)/σ + (b + w (m μ + c − μ)/σ)`."""
    op = layer.op
    if "running_mean" not in op.parameters or "bias" not in op.parameters:
        raise Unfoldable(f"{layer.node.name} has no fixed statistics")
    mean, variance = (model.state(op.parameters[k]) for k in ("running_mean", "running_var"))
    f = layer.weight * (variance + op.attributes["eps"]).rsqrt()
    return layer, layer.weight * factor, model.state(op.parameters["bias"]) + f * (factor * mean + shift - mean)


def parallel_layer(
    model: Folding, node: fx.Node, op: Operation, m: Map, scale: Elementwise | None = None
) -> Parameters:
    """The parameters with which an operation yields `f (W x + b) + t + m(x)`, f and t those of `scale`.

    Raises:
        Unfoldable: it has none that could.
    """
    if op.name not in DENSE or "weight" not in op.parameters:
        raise Unfoldable(f"{op.name} ({node.name}) parallel to it is no linear or convolution")
    layer = _layer(model, node, op)
    if scale is None:
        weight, bias = layer.weight, layer.bias
    else:
        _, weight, scaled = after_layer(model, node, op, scale)
        assert scaled is not None
        bias = scaled
    axis = 1 if op.name in _CONVS else tensor(node).rank - 1
    groups = op.attributes.get("groups", 1) if op.name in _CONVS else 1
    if isinstance(m, Mixing):
        if m.axis != axis:
            raise Unfoldable(f"the channels that it mixes are not {op.name}'s")
        matrix, shift = m.matrix, m.shift
    else:
        matrix, shift = torch.diag(_vector(node, m.factor, axis, len(bias))), _vector(node, m.shift, axis, len(bias))
    inputs, outputs = weight.shape[1], weight.shape[0] // groups
    blocks = torch.stack(
        [matrix[g * outputs : (g + 1) * outputs, g * inputs : (g + 1) * inputs] for g in range(groups)]
    )
    if bool(torch.block_diag(*blocks).ne(matrix).any()):
        raise Unfoldable(f"{op.name} ({node.name}) parallel to it is grouped, and the tuner joins its groups")
    added = torch.zeros_like(weight)
    tap: tuple[slice | int, ...] = (slice(None), slice(None), *_own_tap(node, op, tuple(weight.shape[2:])))
    added[tap] = blocks.reshape(-1, inputs)
    return layer, weight + added, bias + shift


def _own_tap(node: fx.Node, op: Operation, kernel: tuple[int, ...]) -> tuple[int, ...]:
    """The tap of a kernel that meets, for the result at p, the input at p."""
    if not kernel:
        return ()
    a = op.attributes
    if any(s != 1 for s in _sides(a["stride"], len(kernel))):
        raise Unfoldable(f"{op.name} ({node.name}) parallel to it strides")
    return own_tap(node, op, kernel)


def own_tap(node: fx.Node, op: Operation, kernel: tuple[int, ...], before: tuple[int, ...] = ()) -> tuple[int, ...]:
    """The tap of a kernel that meets, for the result at p, the input at stride · p.

    Args:
        node, op, kernel: a convolution and the sides of its kernel.
        before: zeros that were padded before it, a side each.

    Raises:
        Unfoldable: there is none.
    """
    a = op.attributes
    dilation = _sides(a["dilation"], len(kernel))
    padding = a["padding"]
    if padding == "same":
        left = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    else:
        left = _sides(0 if padding == "valid" else padding, len(kernel))
    left = tuple(p + q for p, q in zip(left, before or (0,) * len(kernel), strict=True))
    taps = tuple(p // d for p, d in zip(left, dilation, strict=True))
    if any(p % d or t >= k for p, d, t, k in zip(left, dilation, taps, kernel, strict=True)):
        raise Unfoldable(f"no tap of {op.name} ({node.name}) meets its own position")
    return taps


def _layer(model: Folding, node: fx.Node, op: Operation) -> Layer:
    layer = Layer(model, node, op)
    layer.check()
    return layer


def _of_outputs(node: fx.Node, op: Operation, weight: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A map's numbers as they meet an operation's output channels: `(out,)`, or a norm's `normalized_shape`."""
    rank = tensor(node).rank
    if op.name in ("layer_norm", "rms_norm"):
        width = weight.dim()
        if any(n != 1 for n in t.shape[: rank - width]):
            raise Unfoldable(f"the tuner treats positions differently, {op.name} ({node.name}) does not")
        return t.reshape(t.shape[rank - width :]).expand(weight.shape)
    axis = rank - 1 if op.name in ("linear", "embedding") else 1
    count = tensor(node).shape[axis]
    assert isinstance(count, int)
    return _vector(node, t, axis, count)


def _vector(node: fx.Node, t: torch.Tensor, axis: int, count: int) -> torch.Tensor:
    if any(n != 1 for a, n in enumerate(t.shape) if a != axis):
        raise Unfoldable(f"at {node.name}, what the tuner does differs by position, and not by channel alone")
    return t.reshape(-1).expand(count)


def _sides(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    return (value,) * count if isinstance(value, int) else tuple(value)


def _check_border(node: fx.Node, op: Operation, shift: torch.Tensor) -> None:
    if op.name == "linear" or not bool(shift.any()):
        return
    padding, kernel = op.attributes.get("padding", 0), op.attributes.get("kernel_size", ())
    zeros = op.attributes.get("padding_mode", "zeros") == "zeros"
    padded = (
        any(k != 1 for k in _sides(kernel, 1)) if padding == "same" else padding != "valid" and any(_sides(padding, 1))
    )
    if zeros and padded:
        raise Unfoldable(f"{node.name} pads its input with zeros, where the tuner's shift would be missing")


def _by_input(vector: torch.Tensor, groups: int, weight: torch.Tensor) -> torch.Tensor:
    """A vector of input channels, as it meets a weight `(out, in/groups, …)`."""
    rows = vector.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, 0)
    return rows.reshape(*rows.shape, *[1] * (weight.dim() - 2))
