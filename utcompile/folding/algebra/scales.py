"""Frozen affine maps between layers: BatchNorm in eval, LayerScale, constants."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from utcompile.folding.algebra.travel import Elementwise
from utcompile.folding.folding import Folding, Unfoldable
from utcompile.folding.patch import Replace
from utcompile.graph import Operation, is_state, state_name, tensor, value_of


@dataclass(frozen=True)
class Scale:
    """A node that computes `map(z)` of the value z that `source` yields.

    Attributes:
        parameters: by role, the parameters and buffers that say what it is; None where they cannot be changed.
        number: the constant that it is, where it is one.
        eps: of a BatchNorm.
    """

    node: fx.Node
    source: fx.Node
    map: Elementwise
    parameters: dict[str, str] | None = None
    number: float | None = None
    eps: float = 0.0

    def neutral(self, model: Folding) -> dict[str, torch.Tensor]:
        """Values of its parameters with which it does nothing, so that the module that has them can stay.

        Raises:
            Unfoldable: they are shared, or are not parameters of the model themselves.
        """
        if self.parameters is None:
            raise Unfoldable(f"the constant of {self.node.name}, which is on the way, cannot be changed")
        found: dict[str, torch.Tensor] = {}
        for role, name in self.parameters.items():
            model.check_read_once(self.node, name)
            number = {"weight": 1.0, "running_var": 1.0 - self.eps}.get(role, 0.0)
            found[name] = torch.full_like(model.state(name), number)
        return found


def without_scale(node: fx.Node) -> Replace:
    """Take a frozen affine map out; its readers read what it read."""
    return Replace(node, by=next(n for n in node.all_input_nodes if not is_state(n)))


def scale_of(model: Folding, node: fx.Node, op: Operation) -> Scale | None:
    """Read a node as a frozen affine map of what it reads, where it is one."""
    value = value_of(node)
    if value is None or len(op.inputs) != 1:
        return None
    (source,) = op.inputs
    if op.name == "batch_norm":
        return _batch_norm(model, node, op)
    if op.name not in ("mul", "div", "add", "sub") or tensor(source).shape != value.shape:
        return None
    others = [a for a in node.args if a is not source]
    if len(others) != 1 or node.kwargs:
        return None
    number, name = None, None
    (other,) = others
    if isinstance(other, fx.Node):
        if not is_state(other):
            return None
        t = model.evaluate(other)
        name = state_name(other)
        if name is not None and not torch.equal(t.flatten(), model.state(name).flatten()):
            name = None  # a part of it, or turned
        if t.dim() > value.rank:
            return None
    elif isinstance(other, (int, float)):
        number = float(other)
        t = torch.tensor(number, dtype=torch.float64)
    else:
        return None
    t = t.reshape((1,) * (value.rank - t.dim()) + tuple(t.shape))
    first = op.operands.get("input") is source
    if op.name == "mul":
        found = Elementwise(t, torch.zeros_like(t))
    elif op.name == "div" and first:
        found, name = Elementwise(1 / t, torch.zeros_like(t)), None
    elif op.name == "add":
        found = Elementwise(torch.ones_like(t), t)
    else:
        return None
    role = "weight" if op.name == "mul" else "bias"
    return Scale(node, source, found, None if name is None else {role: name}, number)


def _batch_norm(model: Folding, node: fx.Node, op: Operation) -> Scale | None:
    if op.attributes.get("training", False) or "running_mean" not in op.parameters:
        return None
    mean, variance = (model.state(op.parameters[k]) for k in ("running_mean", "running_var"))
    factor = (variance + op.attributes["eps"]).rsqrt()
    if "weight" in op.parameters:
        factor = factor * model.state(op.parameters["weight"])
    shift = -mean * factor
    if "bias" in op.parameters:
        shift = shift + model.state(op.parameters["bias"])
    shape = (1, -1, *[1] * (tensor(node).rank - 2))
    found = Elementwise(factor.reshape(shape), shift.reshape(shape))
    return Scale(node, op.inputs[0], found, dict(op.parameters), eps=op.attributes["eps"])
