"""Read the weights of linears and convolutions, whether modules or functions, in float64, and change them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn

from utcompile.folding.folding import Folding, Unfoldable
from utcompile.folding.patch import Added, Argument, Draft, Edit, New
from utcompile.graph import (
    Operation,
    is_state,
    module_of,
    operand,
    origin_of,
    owner_of,
    owner_path,
    tensor,
)

_SIZES = ("shape", "size", "sizes")  # what operations call the sizes that they state


@dataclass
class Layer:
    """A linear or convolution node, its weight `(out, in/groups, *kernel)` and bias `(out,)` in float64."""

    model: Folding
    node: fx.Node
    op: Operation

    @property
    def weight(self) -> torch.Tensor:
        """The weight in float64."""
        return self.model.state(self.op.parameters["weight"])

    @property
    def bias(self) -> torch.Tensor:
        """The bias in float64; zeros where there is none."""
        name = self.op.parameters.get("bias")
        return self.model.state(name) if name else self.weight.new_zeros(self.weight.shape[0])

    def outputs_bias(self, count: int) -> torch.Tensor:
        """The bias in float64, in its own shape; zeros of a number of outputs where there is none."""
        name = self.op.parameters.get("bias")
        return self.model.state(name) if name else self.weight.new_zeros(count)

    def check(self) -> None:
        """Refuse what cannot be rewritten."""
        computed = [n.name for n in self.node.all_input_nodes if is_state(n) and n.op != "get_attr"]
        if computed:
            raise Unfoldable(f"{computed[0]}, a parameter of {self.node.name}, is computed from others")
        self.model.check_unshared(self.node, self.op)

    def change(self, draft: Draft, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Replace weight and bias by others of the same sizes; a bias of zeros is not added."""
        name = self.op.parameters["weight"]
        draft.values[name] = weight
        if "bias" in self.op.parameters:
            draft.values[self.op.parameters["bias"]] = bias
        elif bool(bias.any()):
            draft.values[self._new_bias(draft)] = New(bias, self.model.home_of(name))

    def resize(self, draft: Draft, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Replace weight and bias, which may have other sizes; the layer keeps its name."""
        name = self.op.parameters["weight"]
        home = self.model.home_of(name)
        if self.node.op == "call_module":
            path = owner_path(name)
            draft.modules[path] = self._resized_module(weight.shape, self.model.root.get_submodule(path).training)
        elif self.op.attributes.get("groups", 1) != 1:
            draft.edits.append(Argument(self.node, "groups", len(weight)))
        draft.values[name] = New(weight, home)
        draft.values[self.op.parameters.get("bias") or self._new_bias(draft)] = New(bias, home)

    def _new_bias(self, draft: Draft) -> str:
        """The name of a bias that is added; where the layer is a function, of an operand of its call too.

        The module of a function's weight may have other parameters, also one that is called `bias` already.
        """
        owner, _ = owner_of(self.model.root, self.op.parameters["weight"])
        path, attribute = owner_path(self.op.parameters["weight"]), "bias"
        if self.node.op != "call_module":
            while getattr(owner, attribute, None) is not None or f"{path}.{attribute}".lstrip(".") in draft.values:
                attribute += "_"
        name = f"{path}.{attribute}".lstrip(".")
        if self.node.op != "call_module":
            read = Added("get_attr", name, (), self.node, origin_of(self.node), state=True)
            draft.edits += [read, Argument(self.node, "bias", read)]
        return name

    def _resized_module(self, shape: torch.Size, training: bool) -> nn.Module:
        new: nn.Module
        if self.op.name == "linear":
            new = nn.Linear(shape[1], shape[0], device="meta")
        else:
            make = module_of(self.op.name)
            assert make is not None
            kept = ("stride", "padding", "dilation", "padding_mode")
            options = {k: v for k, v in self.op.attributes.items() if k in kept}
            groups = shape[0] if self.op.attributes["groups"] != 1 else 1
            new = make(shape[1] * groups, shape[0], tuple(shape[2:]), groups=groups, **options, device="meta")
        return new.train(training).requires_grad_(False)


def widened_sizes(node: fx.Node, axis: int, before: int, after: int) -> list[Edit]:
    """Where an operation that moves numbers states the size of an axis, state another one.

    Raises:
        Unfoldable: it states its sizes in a way that is not understood.
    """
    shape = tensor(node).shape
    role = next((r for r in _SIZES if operand(node, r) is not None), None)
    if role is None or shape[axis] != before:
        return []
    sizes = list(operand(node, role))
    if len(sizes) != len(shape):
        raise Unfoldable(f"{node.name} states the hidden size in a way that is not understood")
    if sizes[axis] != before:
        return []
    return [Argument(node, role, [*sizes[:axis], after, *sizes[axis + 1 :]])]
