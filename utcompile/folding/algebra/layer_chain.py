"""The chain of frozen operations parallel to a tuner, from the value it is added to back to the one it reads.

    source [scale] first [scale] [σ] [padding depthwise [scale]] [σ'] [squeeze] last [scale]

With a gate, what comes before `last` is the product of the activated value and of what `gate` makes of the source; the
gate may be the other half of a packed `first`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from utcompile.folding.algebra.layers import Layer
from utcompile.folding.algebra.scales import Scale, scale_of
from utcompile.folding.folding import Folding, Unfoldable
from utcompile.folding.site import untuned
from utcompile.graph import GraphView, Operation, readers, tensor
from utcompile.ops import Trait, having

_WIDER = having(Trait.OUTPUTS_FIRST)  # a linear, or a convolution
_STILL = having(Trait.AXES | Trait.SAME | Trait.DROPOUT)  # every number stays


@dataclass(frozen=True)
class Squeeze:
    """A squeeze-excite: `v ⊙ gate(expand(… reduce(mean(v))))`."""

    reduce: Layer
    expand: Layer
    gate: Operation


@dataclass
class Chain:
    """The operations between the value that a tuner reads and the value to which it adds.

    Attributes:
        first: the layer that reads what the tuner reads.
        last: the layer whose result is added to the stream.
        before, after: the activations in front of and behind the depthwise convolution; without one, there is one.
        depthwise: the depthwise convolution, and the zeros that are padded before it, on the left of each side.
        gate: a second layer parallel to the first, whose result multiplies the activated one (gated ffns).
        split: where the gate is the other half of the first layer, the operation that halves it, and the half that is
            activated.
        squeeze: a squeeze-excite before the last layer.
        entry: frozen affine maps between the source and the layers that read it.
        scales: after each of the layers, the frozen affine maps of its result, in order.
        moved: the operations between that only move numbers, and their channel axes.
    """

    first: Layer
    last: Layer
    before: fx.Node | None = None
    after: fx.Node | None = None
    depthwise: Layer | None = None
    padding: tuple[int, ...] = ()
    gate: Layer | None = None
    split: tuple[fx.Node, int] | None = None
    squeeze: Squeeze | None = None
    entry: list[Scale] = field(default_factory=list)
    scales: dict[fx.Node, list[Scale]] = field(default_factory=dict)
    moved: list[tuple[fx.Node, int]] = field(default_factory=list)

    @property
    def layers(self) -> list[Layer]:
        """All that are widened."""
        parts = (self.first, self.gate, self.depthwise, self.last)
        more = (self.squeeze.reduce, self.squeeze.expand) if self.squeeze is not None else ()
        return [layer for layer in (*parts, *more) if layer is not None]


def find_chain(model: Folding, end: fx.Node, source: fx.Node) -> Chain:
    """Walk back from the value a tuner is added to.

    Raises:
        Unfoldable: the operations there are no chain that can be widened.
    """
    return _Walk(model, source).chain(end)


class _Walk:
    """One walk back through a graph; the readers of values in `shared` are all of the chain."""

    def __init__(self, model: Folding, source: fx.Node) -> None:
        self.model, self.source, self.view = model, source, model.view()
        self.scales: dict[fx.Node, list[Scale]] = {}
        self.moved: list[tuple[fx.Node, int]] = []
        self.shared: dict[fx.Node, set[fx.Node]] = {}

    def chain(self, end: fx.Node) -> Chain:
        while (value := untuned(end)) is not None:  # other tuners next to the same branch
            self.single(end)
            end = value
        last = self.layer(self.back(end, "pointwise"))
        self.moved.clear()  # behind the last layer, nothing grows
        chain = Chain(last, last, scales=self.scales, moved=self.moved)
        inner = self.still(last.op.inputs[0])
        if self.view.operations[inner].name == "mul" and len(self.view.operations[inner].inputs) == 2:
            inner = self.product(chain, inner)
        if chain.split is None:
            self.hidden(chain, inner)
        self.enter(chain)
        for layer in chain.layers:
            layer.check()
        return chain

    def hidden(self, chain: Chain, inner: fx.Node) -> None:
        """From what the last layer reads back to the first."""
        found = self.back(inner, "activation", "pointwise", "depthwise_conv", scaled=False)
        if "activation" in self.view.classes[found]:
            chain.after = found
            found = self.back(self.input(found), "pointwise", "depthwise_conv")
        if "depthwise_conv" in self.view.classes[found]:
            if chain.gate is not None:
                raise Unfoldable("both a gate and a depthwise convolution are on the way")
            chain.depthwise = self.layer(found)
            found, chain.padding = self.unpadded(chain.depthwise.op.inputs[0])
            found = self.back(found, "activation", "pointwise")
            if "activation" in self.view.classes[found]:
                if self.scales[found]:
                    raise Unfoldable(f"{self.scales[found][0].node.name} is on the way")
                chain.before = found
                found = self.back(self.input(found), "pointwise")
        chain.first = self.layer(found)

    def enter(self, chain: Chain) -> None:
        """From what the first layers read back to the source."""
        layers = [layer for layer in (chain.first, chain.gate) if layer is not None]
        value = layers[0].op.inputs[0]
        if any(layer.op.inputs[0] is not value for layer in layers):
            raise Unfoldable(f"{layers[0].node.name} and {layers[1].node.name} read different values")
        origin = self.view.without_layout(self.source)
        mine = {layer.node for layer in layers}
        node = value
        while self.view.without_layout(node) is not origin:
            scale = scale_of(self.model, node, self.view.operations[node])
            if scale is None and self.view.operations[node].name in _STILL:
                onward = self.input(node)
            elif scale is not None and scale.number is None and _of_channels(scale, self.view):
                chain.entry.append(scale)
                onward = scale.source
            else:
                first = chain.first.node.name
                raise Unfoldable(
                    f"it reads {self.source.name}, and the layer parallel to it, {first}, reads {value.name}"
                )
            if not set(readers(node)) <= mine:
                self.single(node)
            mine, node = {node}, onward

    # --- steps ----------------------------------------------------------------------------------------------------

    def layer(self, node: fx.Node) -> Layer:
        op = self.view.operations[node]
        if op.name not in _WIDER or "weight" not in op.parameters or node.op == "call_method":
            raise Unfoldable(
                f"{op.name} ({node.name}) has no weight with its outputs first, to which rows can be added"
            )
        return Layer(self.model, node, op)

    def input(self, node: fx.Node) -> fx.Node:
        return self.view.operations[node].inputs[0]

    def single(self, node: fx.Node) -> None:
        reading = readers(node)
        if len(reading) != 1 and not set(reading) <= self.shared.get(node, set()):
            shown = ", ".join(u.name for u in reading[:3])
            raise Unfoldable(f"{node.name} is read in {len(reading)} places ({shown})")

    def back(self, node: fx.Node, *ends: str, scaled: bool = True) -> fx.Node:
        """Back through what moves numbers and through frozen affine maps to an operation of one of these classes."""
        found: list[Scale] = []
        while True:
            node = self.still(node)
            self.single(node)
            op = self.view.operations[node]
            if self.view.classes[node] & set(ends):
                self.scales[node] = found[::-1]
                return node
            scale = scale_of(self.model, node, op) if scaled else None
            if scale is None or not _of_channels(scale, self.view):
                raise Unfoldable(f"{op.name} ({node.name}) is on the way")
            found.append(scale)
            node = scale.source

    def still(self, node: fx.Node) -> fx.Node:
        """Back through what leaves every number as it is."""
        while self.view.operations[node].name in _STILL and self.view.operations[node].inputs:
            self.single(node)
            axis = self.view.channel_axis[node]
            if axis is not None:
                self.moved.append((node, axis))
            node = self.input(node)
        return node

    def unpadded(self, node: fx.Node) -> tuple[fx.Node, tuple[int, ...]]:
        """Back through zeros padded to the positions of a feature map; how many there are on the left of each side."""
        op = self.view.operations[node]
        if op.name != "pad":
            return node, ()
        self.single(node)
        pad, sides = op.attributes["pad"], tensor(node).rank - 2
        plain = op.attributes.get("mode", "constant") == "constant" and not op.attributes.get("value")
        if not plain or not isinstance(pad, (tuple, list)) or not all(isinstance(p, int) for p in pad):
            raise Unfoldable(f"pad ({node.name}) is on the way")
        left = [int(p) for p in pad[::2]][::-1]  # the last axis comes first
        if len(left) > sides:
            raise Unfoldable(f"pad ({node.name}) is on the way, and pads channels")
        self.moved.append((node, 1))
        return op.inputs[0], (*[0] * (sides - len(left)), *left)

    # --- products ---------------------------------------------------------------------------------------------------

    def product(self, chain: Chain, node: fx.Node) -> fx.Node:
        """A squeeze-excite's or a gated ffn's product; the operand in which the chain goes on."""
        self.single(node)
        operands = self.view.operations[node].inputs
        for value, gate in (operands, operands[::-1]):
            squeeze = self.squeeze(value, gate)
            if squeeze is not None:
                chain.squeeze, pool = squeeze
                self.shared[value] = {node, pool}
                return value
        a, b = (self.still(n) for n in operands)
        for activated, other in ((a, b), (b, a)):
            if "activation" in self.view.classes[activated] and "pointwise" in self.view.classes[other]:
                self.single(other)
                chain.gate, self.scales[other] = self.layer(other), []
                return activated
            if "activation" in self.view.classes[activated] and self.view.operations[other].name == "getitem":
                self.packed(chain, activated, other)
                return activated
        raise Unfoldable(f"{node.name} multiplies two values, of which none is an activation and the other a layer")

    def packed(self, chain: Chain, activated: fx.Node, other: fx.Node) -> None:
        """Both halves of one layer's result: one is activated, the other is the gate."""
        self.single(activated)
        half = self.still(self.input(activated))
        split = other.args[0]
        same = half.op == "call_function" and half.args[0] is split and isinstance(split, fx.Node)
        if not same or self.view.operations[split].attributes.get("chunks") != 2:  # type: ignore[index]
            raise Unfoldable(f"{other.name} is no half of what {activated.name} is made of")
        assert isinstance(split, fx.Node) and isinstance(half.args[1], int)
        self.single(half)
        self.single(other)
        first = self.still(self.input(split))
        self.single(first)
        if "pointwise" not in self.view.classes[first]:
            raise Unfoldable(f"{self.view.operations[first].name} ({first.name}) is on the way")
        chain.after, chain.first, chain.split = activated, self.layer(first), (split, half.args[1])
        self.scales[first] = []

    def squeeze(self, value: fx.Node, gate: fx.Node) -> tuple[Squeeze, fx.Node] | None:
        """A gate that is computed from the channels' means, where it is one; and the node that takes the means."""
        classes, operations = self.view.classes, self.view.operations
        found: list[fx.Node] = []
        node = gate
        for wanted in ("activation", "pointwise", "activation", "pointwise", "pool"):
            while (operations[node].name in _STILL or operations[node].name == "expand") and len(readers(node)) == 1:
                node = self.input(node)
            if wanted not in classes[node] or len(readers(node)) != 1:
                return None
            found.append(node)
            node = self.input(node)
        while operations[node].name in _STILL and node is not value:
            node = self.input(node)
        if node is not value:
            return None
        for layer in (found[1], found[3]):
            self.scales[layer] = []
        return Squeeze(self.layer(found[3]), self.layer(found[1]), operations[found[0]]), found[4]


def _of_channels(scale: Scale, view: GraphView) -> bool:
    """Whether an affine map of a value treats every position alike."""
    axis = view.channel_axis[scale.node]
    if axis is None:
        return False
    return all(n == 1 for t in (scale.map.factor, scale.map.shift) for a, n in enumerate(t.shape) if a != axis)
