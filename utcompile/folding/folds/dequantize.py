"""Weight sites next to quantised weights: kept, or on request folded into a weight of floating-point numbers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from utcompile.folding.algebra.parameters import check_readers, is_quantised, operations_of
from utcompile.folding.algebra.rounding import share_retained
from utcompile.folding.base import Fold
from utcompile.folding.case import Case
from utcompile.folding.execute import double_copy, in_float64
from utcompile.folding.folding import Folding, Unfoldable
from utcompile.folding.patch import Added, Draft, New, Patch, Redirect, Replace, Unread
from utcompile.folding.site import Site
from utcompile.graph import Role, ancestors, is_state, origin_of, run_node, tensor, value_of
from utcompile.graph.stored import is_stored, stored_in
from utcompile.rewrite import TunedWeight


class Dequantize(Fold):
    """`y + s·B(A x)` next to `y = OP(x; deq(Q))` becomes `OP(x; W)` with `W = deq(Q) + s·BA`, and Q goes."""

    status = "absorbed"
    trusted = True
    cases = (
        Case(
            "W2",
            "next to a quantised weight, `y = OP(x; deq(Q)) + s·B(A(x)) = OP(x; deq(Q) + s·BA)`",
            "the weight holds floating-point or complex numbers; or `dequantize=True`: the operation reads a new "
            "parameter `….weight_dequantized`, in the dtype that it computed in, and the quantised tensors go",
            "an int8 weight plus `s·BA` is no int8 weight: the tuner is kept",
            "tuners/test_quantised.py::test_lora_stands_beside_a_quantised_weight",
        ),
        Case(
            "W2",
            "",
            "the operation reads a weight that is computed before, or it is a linear whose weight is of a quantiser's "
            "class (torchao's) and that computes what the dequantised weight computes",
            "a layer that reads the quantised tensors in its own operation (an `autograd.Function`) is always kept; so "
            "is a layer that rounds its input to int8 too",
            "tuners/test_quantised.py::test_lora_stands_beside_a_layer_with_its_own_backward",
        ),
    )
    local = True

    def requires(self, site: Site, model: Folding) -> bool:
        """A site of a quantised weight."""
        return isinstance(site.place, TunedWeight) and is_quantised(site.place)

    def plan(self, site: Site, model: Folding) -> Patch:
        """Make one weight of floating-point numbers.

        Raises:
            Unfoldable: `dequantize=True` was not given, or the operation reads no weight that can be computed once.
        """
        operations = operations_of(site.nodes)
        kinds = sorted({str(t.dtype).removeprefix("torch.") for n in operations for t in _quantised(model, n)})
        what = f"its weight is quantised ({', '.join(kinds)})" if kinds else "its weight is quantised"
        if not model.options.dequantize:
            raise Unfoldable(f"{what}, and stays so; `dequantize=True` folds into a weight of floating-point numbers")
        if all(n.op == "call_module" for n in operations):
            return _of_layer(model, site, operations, what)
        made = double_copy(site.tuner)
        shapes = tuple(made.weight_shape)  # type: ignore[arg-type]
        found = [next((i for i in n.all_input_nodes if _is_weight(i, shapes)), None) for n in operations]
        operands = [o for o in found if o is not None]
        if len(operands) != len(operations):
            raise Unfoldable(f"{what}, and {operations[0].name} reads it in its own form")
        before = _evaluated(model, operands[0])
        with torch.no_grad():
            after = made.changed(before)  # type: ignore[operator]
        home = tensor(operands[0]).dtype

        branches = site.nodes[Role.BRANCH]
        draft, name = Draft(), _name(model, site.tuned.path)
        device = next((t.device for t in model.root.parameters()), torch.device("cpu"))
        draft.values[name] = New(after, (home, device))
        for branch, node, operand in zip(branches, operations, operands, strict=True):
            weight = Added("get_attr", name, (), node, origin_of(operand), state=True, value=tensor(operand))
            draft.edits += [weight, Redirect(node, operand, weight), Replace(branch, by=node), Unread(_behind(operand))]
        sources = tuple(next(n for n in b.all_input_nodes if not is_state(n)) for b in branches)
        return draft.patch(sources, branches, share_retained(before, after, home))


def _of_layer(model: Folding, site: Site, operations: list[fx.Node], what: str) -> Patch:
    """A linear whose weight is of a quantiser's class: it reads the numbers that the weight stands for."""
    path = str(operations[0].target)
    layer, name = model.root.get_submodule(path), f"{path}.weight"
    weight = layer._parameters.get("weight")
    if not isinstance(layer, nn.Linear) or weight is None or not is_traceable_wrapper_subclass(weight):
        raise Unfoldable(f"{what}, and {operations[0].name} reads it in its own form")
    check_readers(model, name, {*operations, *site.nodes[Role.BRANCH]})
    try:
        before, home = in_float64(name, weight), (weight.dtype, weight.device)
        if not _is_plain(layer, before.to(weight.device, weight.dtype)):
            raise Unfoldable(f"{what}, and {operations[0].name} rounds what it reads too")
    except NotImplementedError as error:
        raise Unfoldable(f"{what}, and says no numbers: {error}".partition("\n")[0]) from error
    with torch.no_grad():
        after = double_copy(site.tuner).changed(before)
    draft, branches = Draft(), site.nodes[Role.BRANCH]
    draft.values[name] = New(after, home)
    draft.edits += [Replace(b, by=n) for b, n in zip(branches, operations, strict=True)]
    sources = tuple(next(n for n in b.all_input_nodes if not is_state(n)) for b in branches)
    return draft.patch(sources, branches, share_retained(before, after, home[0]))


def _is_plain(layer: nn.Linear, weight: torch.Tensor) -> bool:
    """Whether a quantised layer computes what it would compute with a weight of floating-point numbers."""
    x = torch.randn(8, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad():
        own, plain = layer(x), F.linear(x, weight, layer.bias)
    return bool((own - plain).abs().max() <= torch.finfo(weight.dtype).eps ** 0.5 * plain.abs().max())


def _behind(operand: fx.Node) -> tuple[fx.Node, ...]:
    """A weight's computation, in graph order."""
    return tuple(sorted(n for n in ancestors([operand]) if n.op != "placeholder"))


def _is_weight(operand: fx.Node, shape: tuple[int, ...]) -> bool:
    value = value_of(operand)
    return is_stored(operand) and value is not None and value.dtype.is_floating_point and value.shape == shape


def _quantised(model: Folding, node: fx.Node) -> Iterator[torch.Tensor]:
    for operand in node.all_input_nodes:
        for state in stored_in(operand) if is_stored(operand) else ():
            found = model.raw(str(state.target))
            if found.numel() > 1 and (not found.is_floating_point() or found.dtype.itemsize == 1):
                yield found
    if node.op == "call_module":
        for found in model.root.get_submodule(str(node.target)).state_dict().values():
            if isinstance(found, torch.Tensor) and not found.is_floating_point() and found.numel() > 1:
                yield found


def _evaluated(model: Folding, operand: fx.Node) -> torch.Tensor:
    """What a weight's numbers stand for, in float64; of an input it reads the dtype."""

    def value(node: fx.Node) -> object:
        if node.op == "placeholder":
            return torch.empty(0, dtype=torch.float64)
        return run_node(model.root, node, value, in_float64)

    found = value(operand)
    assert isinstance(found, torch.Tensor)
    return in_float64("", found)


def _name(model: Folding, path: str) -> str:
    name = f"{path}.weight_dequantized".lstrip(".")
    while name in dict(model.root.named_parameters(remove_duplicate=False)):
        name += "_"
    return name
