"""Weight sites beside quantised weights: kept, or on request folded into a weight of floating-point numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from utcompile.fold.absorb import operations_of, share_retained
from utcompile.fold.execute import double_copy, in_float64, run_node
from utcompile.fold.folding import Folding, Unfoldable
from utcompile.fold.patch import Added, Draft, Editor, New, Patch, Redirect, Replace
from utcompile.graph import Role, is_state, origin_of, tensor, value_of
from utcompile.graph.stored import is_stored, stored_in
from utcompile.rewrite import TunedSite


def plan_dequantised(model: Folding, site: TunedSite, nodes: dict[Role, list[fx.Node]], wanted: bool) -> Patch:
    """`y + s·B(A x)` beside `y = OP(x; deq(Q))` becomes `OP(x; W)` with `W = deq(Q) + s·BA`, and Q goes.

    Args:
        wanted: whether weights may be dequantised.

    Raises:
        Unfoldable: they may not, or the operation reads no weight that can be computed once.
    """
    operations = operations_of(nodes)
    kinds = sorted({str(t.dtype).removeprefix("torch.") for n in operations for t in _quantised(model, n)})
    what = f"its weight is quantised ({', '.join(kinds)})" if kinds else "its weight is quantised"
    if not wanted:
        raise Unfoldable(f"{what}, and stays so; `dequantize=True` folds into a weight of floating-point numbers")
    made = double_copy(model.root.get_submodule(site.name))
    shapes = tuple(made.weight_shape)  # type: ignore[arg-type]
    found = [next((i for i in n.all_input_nodes if _is_weight(i, shapes)), None) for n in operations]
    operands = [o for o in found if o is not None]
    if len(operands) != len(operations):
        raise Unfoldable(f"{what}, and {operations[0].name} reads it in a form of its own")
    before = _evaluated(model, operands[0])
    with torch.no_grad():
        after = made.changed(before)  # type: ignore[operator]
    home = tensor(operands[0]).dtype

    draft, name = Draft(), _name(model, site.path)
    device = next((t.device for t in model.root.parameters()), torch.device("cpu"))
    draft.values[name] = New(after, (home, device))
    for branch, node, operand in zip(nodes[Role.BRANCH], operations, operands, strict=True):
        weight = Added("get_attr", name, (), node, origin_of(operand), state=True, value=tensor(operand))
        draft.edits += [weight, Redirect(node, operand, weight), Replace(branch, by=node), Swept(operand)]
    sources = tuple(next(n for n in b.all_input_nodes if not is_state(n)) for b in nodes[Role.BRANCH])
    return draft.patch(sources, nodes[Role.BRANCH], share_retained(before, after, home))


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


@dataclass(frozen=True)
class Swept:
    """An edit: a weight's computation goes, where nothing reads it any more."""

    node: fx.Node

    def make(self, graph: Editor) -> None:
        """Do it."""
        stack = [self.node]
        while stack:
            node = stack.pop()
            if not node.users and node.op != "placeholder":
                read = node.all_input_nodes
                graph.remove(node)
                stack += reversed(read)


def _evaluated(model: Folding, operand: fx.Node) -> torch.Tensor:
    """What a weight's numbers stand for, in float64; of an input it reads the dtype."""

    def value(node: fx.Node) -> Any:
        if node.op == "placeholder":
            return torch.empty(0, dtype=torch.float64)
        return run_node(model.root, node, value)

    found = value(operand)
    assert isinstance(found, torch.Tensor)
    return in_float64("", found)


def _name(model: Folding, path: str) -> str:
    name = f"{path}.weight_dequantized".lstrip(".")
    while name in dict(model.root.named_parameters(remove_duplicate=False)):
        name += "_"
    return name
