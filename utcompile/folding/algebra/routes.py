"""The way of an affine map of channels, `v -> M v + c`: back to layers that make a value, or on to those that read it.

A frozen factor γ is never divided by, for it may be 1e-6: the layer takes it, and γ becomes 1, so that the module that
has it can stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import fx

from utcompile.folding.algebra.scales import Scale, scale_of
from utcompile.folding.algebra.sinks import Parameters, after_layer, before_layer
from utcompile.folding.algebra.travel import Elementwise, Map, Mixing, backward, forward, passes, seen
from utcompile.folding.case import Case
from utcompile.folding.folding import Folding, Unfoldable
from utcompile.folding.patch import Draft
from utcompile.graph import Operation, operation, readers, tensor, value_of

CASES = (
    Case(
        "A8",
        "an addition, on the way back: `M (a + b) + c = (M a + c) + M b`",
        "both operands take their share",
        "a residual stream is read by all later blocks",
        "folding/test_through.py::test_kept_with_its_reason[ssf on a value that is read twice]",
    ),
    Case(
        "A9",
        "a product of two values: `m (a ⊙ g) = (m a) ⊙ g`",
        "c = 0",
        "`(a ⊙ g) + c` is no multiple of g",
        "folding/test_through.py::test_kept_with_its_reason[ssf after a product of two layers]",
    ),
    Case(
        "A10",
        "a frozen factor γ: `M γ (W x + b) + c`, by `W' = M γ W`, `b' = M γ b + c`, `γ' = 1`. Without c, γ takes "
        "a diagonal M itself",
        "γ is read once. It is never divided by",
        "`W' = W`, `b' = b + c/γ` at γ = 1e-6 turns 0.1 into 1e5, more than float16 holds (65,504); γ = 0 has no "
        "solution",
        "folding/test_through.py::test_absorbed[ssf after a LayerScale]",
    ),
    Case(
        "A11",
        "a frozen BatchNorm before a full M: the layer takes it as in A10, and its statistics become 0 and 1 − ε",
        "it is called once",
        "the other call would lose its statistics",
        "folding/test_through.py::test_kept_with_its_reason[rep_adapter after a BatchNorm that is called twice]",
    ),
    Case(
        "A12",
        "an added parameter, `M (z + p) + c = M z + (M p + c)`",
        "p is read once and has the size",
        "a position embedding that another block reads too",
        "folding/test_through.py::test_kept_with_its_reason[ssf after a shared position]",
    ),
)


@dataclass
class Changes:
    """New values of parameters: those of layers, and others by name."""

    layers: list[Parameters] = field(default_factory=list)
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    sources: list[fx.Node] = field(default_factory=list)

    def add(self, other: Changes) -> None:
        """Both of them.

        Raises:
            Unfoldable: they change the same parameter.
        """
        mine, theirs = (
            {layer.op.parameters["weight"] for layer, _, _ in c.layers} | {*c.values} for c in (self, other)
        )
        if shared := mine & theirs:
            raise Unfoldable(f"{min(shared)} would be changed twice")
        self.layers += other.layers
        self.values |= other.values
        self.sources += other.sources

    def make(self, draft: Draft) -> None:
        """Write them into a patch."""
        for layer, weight, bias in self.layers:
            layer.change(draft, weight, layer.outputs_bias(1) if bias is None else bias)
        draft.values |= self.values


# --- back to what makes a value --------------------------------------------------------------------------------------


def map_before(model: Folding, value: fx.Node, m: Map, path: list[fx.Node]) -> Changes:
    """Changes that turn what a node yields into `m` of it; `path` reads it, and needs that."""
    op = operation(value, model.root)
    if op.name == "getitem" and operation(value.args[0], model.root).name == "split":  # type: ignore[arg-type]
        return _before_split(model, value, m, path)
    _check_others(model, value, m, path)
    why = ""
    try:
        layer = after_layer(model, value, op, m)
        return Changes([layer], sources=list(op.inputs))
    except Unfoldable as reason:
        why = str(reason)
    scale = scale_of(model, value, op)
    if scale is not None:
        return _before_scale(model, scale, m, path=[value])
    if op.name == "add" and len(op.inputs) == 2:
        return _before_sum(model, value, op, m)
    if op.name == "mul" and len(op.inputs) == 2 and isinstance(m, Elementwise) and not bool(m.shift.any()):
        return _before_product(model, value, op, m)
    if passes(op) and len(op.inputs) == 1:
        (source,) = op.inputs
        return map_before(model, source, backward(model, [value], source, m), [value])
    raise Unfoldable(why)


def _before_split(model: Folding, part: fx.Node, m: Map, path: list[fx.Node]) -> Changes:
    _check_others(model, part, m, path)
    split = part.args[0]
    assert isinstance(split, fx.Node)
    (source,) = operation(split, model.root).inputs
    if isinstance(m, Mixing):
        raise Unfoldable(f"{part.name} is a part of {source.name}, and a full matrix cannot be taken to a part")
    return map_before(model, source, backward(model, [split, part], source, m), [split, part])


def _before_scale(model: Folding, scale: Scale, m: Map, path: list[fx.Node]) -> Changes:
    """`M (f z + t) + c`: A10, A11."""
    f, t = scale.map.factor, scale.map.shift
    if scale.number is not None and bool((f == f.flatten()[0]).all()) and not bool(t.any()):
        if scale.number == 0:
            raise Unfoldable(f"{scale.node.name} multiplies by zero")
        return map_before(model, scale.source, _map(m, m.shift / f.flatten()[0]), path)
    role = set(scale.parameters or ())
    if role == {"bias"}:
        return _before_addition(model, scale, m, path)
    if role == {"weight"} and isinstance(m, Elementwise) and not bool(m.shift.any()):
        factor = f * m.factor
        if factor.shape == f.shape:  # the factor itself takes it
            assert scale.parameters is not None
            name = scale.parameters["weight"]
            model.check_read_once(scale.node, name)
            return Changes(values={name: factor.reshape(model.state(name).shape)}, sources=[scale.source])
    found = Changes(values=scale.neutral(model))
    found.add(map_before(model, scale.source, _after_scale(m, f, t, tensor(scale.node).rank), path))
    return found


def _before_addition(model: Folding, scale: Scale, m: Map, path: list[fx.Node]) -> Changes:
    """A12: `M (z + p) + c = M z + (M p + c)`."""
    assert scale.parameters is not None
    name, p = scale.parameters["bias"], scale.map.shift
    model.check_read_once(scale.node, name)
    if isinstance(m, Mixing):
        if p.shape[m.axis] != len(m.shift):
            raise Unfoldable(f"{name}, which is added on the way, has no channels")
        added = _mixed(m, p)
    else:
        added = m.factor * p + m.shift
    if added.shape != p.shape:
        raise Unfoldable(f"{name}, which is added on the way, has not the size that would take the shift")
    found = Changes(values={name: added.reshape(model.state(name).shape)})
    found.add(map_before(model, scale.source, _map(m, torch.zeros_like(m.shift)), path))
    return found


def _before_sum(model: Folding, value: fx.Node, op: Operation, m: Map) -> Changes:
    """A8."""
    a, b = op.inputs
    if a is b or tensor(a).shape != tensor(b).shape:
        raise Unfoldable(f"{value.name} adds a value to itself or to one of another size")
    bare = _map(m, torch.zeros_like(m.shift))
    reasons = []
    for first, second in ((a, b), (b, a)):
        try:
            found = map_before(model, first, m, [value])
            found.add(map_before(model, second, bare, [value]))
            return found
        except Unfoldable as reason:
            reasons.append(str(reason))
    raise Unfoldable(reasons[0])


def _before_product(model: Folding, value: fx.Node, op: Operation, m: Elementwise) -> Changes:
    """A9."""
    reasons = []
    for operand in dict.fromkeys(op.inputs):
        if tensor(operand).shape == tensor(value).shape and op.inputs.count(operand) == 1:
            try:
                return map_before(model, operand, m, [value])
            except Unfoldable as reason:
                reasons.append(str(reason))
    raise Unfoldable(reasons[0] if reasons else f"mul ({value.name}) is on the way")


def _check_others(model: Folding, value: fx.Node, m: Map, path: list[fx.Node]) -> None:
    """Whatever else reads a value must not see what is changed of it."""
    others = list(_parts(model, (u for u in readers(value) if u is not path[0])))
    if len(path) > 1:  # the other parts of a split
        others += [[path[0], u] for u in path[0].users if u is not path[1]]
    if not others:
        return
    if isinstance(m, Elementwise):
        sizes = tensor(value).sizes(model.batch)
        changed = ((m.factor != 1) | (m.shift != 0)).expand(sizes)
        others = [p for p in others if bool((seen(model, p, value) & changed).any())]
    if others:
        raise Unfoldable(f"{value.name} is read by {others[0][-1].name} too")


def _parts(model: Folding, users: Iterable[fx.Node]) -> Iterator[list[fx.Node]]:
    """What reads a value; for a split, each of its parts."""
    for user in users:
        if value_of(user) is None and user.op != "output" and operation(user, model.root).name == "split":
            yield from ([user, part] for part in user.users)
        else:
            yield [user]


# --- on to what reads a value ----------------------------------------------------------------------------------------


def map_after(model: Folding, value: fx.Node, m: Map) -> tuple[Changes, list[fx.Node]]:
    """Changes with which whatever reads a node can read what `m` is made of; the layers that end the way."""
    found, ends = Changes(), []
    for path in _parts(model, readers(value)):
        user = path[-1]
        op = operation(user, model.root)
        if user.op == "output":
            raise Unfoldable("the model returns it")
        try:
            layer = before_layer(model, user, op, value, m)
            found.add(Changes([layer]))
            ends.append(user)
            continue
        except Unfoldable as reason:
            why = reason
        further = _carried(model, path, op, value, m)
        if further is None:
            raise why
        changes, layers = map_after(model, user, further)
        found.add(changes)
        ends += layers
    if not ends:
        raise Unfoldable("nothing reads it")
    return found, list(dict.fromkeys(ends))


def _carried(model: Folding, path: list[fx.Node], op: Operation, value: fx.Node, m: Map) -> Map | None:
    """The map behind an operation that lets it through; None where it does not."""
    user = path[-1]
    scale = scale_of(model, user, op)
    if scale is not None and isinstance(m, Elementwise) and not bool(scale.map.shift.any()):
        return Elementwise(m.factor, m.shift * scale.map.factor)
    if op.name == "mul" and len(op.inputs) == 2 and isinstance(m, Elementwise) and not bool(m.shift.any()):
        other = op.inputs[op.inputs[0] is value]
        return m if other is not value and tensor(other).shape == tensor(value).shape else None
    if len(path) > 1 or passes(op) or op.name == "cat":
        return forward(model, path, value, m)
    return None


# --- maps ------------------------------------------------------------------------------------------------------------


def _map(m: Map, shift: torch.Tensor) -> Map:
    return Elementwise(m.factor, shift) if isinstance(m, Elementwise) else Mixing(m.axis, m.matrix, shift)


def _mixed(m: Mixing, t: torch.Tensor) -> torch.Tensor:
    """`matrix · t + shift` along the axis."""
    moved = t.movedim(m.axis, -1) @ m.matrix.T + m.shift
    return moved.movedim(-1, m.axis)


def _after_scale(m: Map, f: torch.Tensor, t: torch.Tensor, rank: int) -> Map:
    """`M f z + (M t + c)`."""
    if isinstance(m, Elementwise):
        return Elementwise(m.factor * f, m.factor * t + m.shift)
    if any(n != 1 for v in (f, t) for a, n in enumerate(v.shape) if a != m.axis):
        raise Unfoldable("a factor that differs by position is on the way")
    vectors = (v.reshape(-1).expand(len(m.shift)) for v in (f, t))
    factor, shift = vectors
    return Mixing(m.axis, m.matrix * factor, m.matrix @ shift + m.shift)
