"""Weight sites beside quantised weights: kept, or on request folded into a weight of floating-point numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from utcompile.fold.absorb import operations_of, share_retained
from utcompile.fold.execute import double_copy, in_float64
from utcompile.fold.layers import Planned, Unfoldable, Work
from utcompile.graph import Role, inserted, is_state, origin_of, run_node, tensor, value_of
from utcompile.graph.stored import is_stored, stored_in
from utcompile.rewrite import TunedSite


def plan_dequantised(work: Work, site: TunedSite, nodes: dict[Role, list[fx.Node]], wanted: bool) -> Planned:
    """`y + s·B(A x)` beside `y = OP(x; deq(Q))` becomes `OP(x; W)` with `W = deq(Q) + s·BA`, and Q goes.

    Args:
        wanted: whether weights may be dequantised.

    Raises:
        Unfoldable: they may not, or the operation reads no weight that can be computed once.
    """
    operations = operations_of(nodes)
    kinds = sorted({str(t.dtype).removeprefix("torch.") for n in operations for t in _quantised(work, n)})
    what = f"its weight is quantised ({', '.join(kinds)})" if kinds else "its weight is quantised"
    if not wanted:
        raise Unfoldable(f"{what}, and stays so; `dequantize=True` folds into a weight of floating-point numbers")
    made = double_copy(work.root.get_submodule(site.name))
    shapes = tuple(made.weight_shape)  # type: ignore[arg-type]
    found = [next((i for i in n.all_input_nodes if _is_weight(i, shapes)), None) for n in operations]
    operands = [o for o in found if o is not None]
    if len(operands) != len(operations):
        raise Unfoldable(f"{what}, and {operations[0].name} reads it in a form of its own")
    before = _evaluated(work, operands[0])
    with torch.no_grad():
        after = made.changed(before)  # type: ignore[operator]
    home = tensor(operands[0]).dtype

    def commit() -> list[fx.Node]:
        name = _name(work, site.path)
        work.add(name, after, home)
        for branch, node, operand in zip(nodes[Role.BRANCH], operations, operands, strict=True):
            with work.graph.inserting_before(node):
                weight = work.graph.get_attr(name)
            inserted(weight, origin_of(operand), state=True, value=tensor(operand))
            node.replace_input_with(operand, weight)
            branch.replace_all_uses_with(node)
            work.graph.erase_node(branch)
            _sweep(work.graph, operand)
        return operations

    sources = tuple(next(n for n in b.all_input_nodes if not is_state(n)) for b in nodes[Role.BRANCH])
    return Planned(sources, tuple(nodes[Role.BRANCH]), commit, share_retained(before, after, home))


def _is_weight(operand: fx.Node, shape: tuple[int, ...]) -> bool:
    value = value_of(operand)
    return is_stored(operand) and value is not None and value.dtype.is_floating_point and value.shape == shape


def _quantised(work: Work, node: fx.Node) -> Iterator[torch.Tensor]:
    for operand in node.all_input_nodes:
        for state in stored_in(operand) if is_stored(operand) else ():
            found = work.raw(str(state.target))
            if found.numel() > 1 and (not found.is_floating_point() or found.dtype.itemsize == 1):
                yield found
    if node.op == "call_module":
        for found in work.root.get_submodule(str(node.target)).state_dict().values():
            if isinstance(found, torch.Tensor) and not found.is_floating_point() and found.numel() > 1:
                yield found


def _sweep(graph: fx.Graph, node: fx.Node) -> None:
    """Erase a weight's computation that nothing reads any more."""
    if node.users or node.op == "placeholder":
        return
    read = node.all_input_nodes
    graph.erase_node(node)
    for operand in read:
        _sweep(graph, operand)


def _evaluated(work: Work, operand: fx.Node) -> torch.Tensor:
    """What a weight's numbers stand for, in float64; of an input it reads the dtype."""

    def value(node: fx.Node) -> Any:
        if node.op == "placeholder":
            return torch.empty(0, dtype=torch.float64)
        return run_node(work.root, node, value, in_float64)

    found = value(operand)
    assert isinstance(found, torch.Tensor)
    return in_float64("", found)


def _name(work: Work, path: str) -> str:
    name = f"{path}.weight_dequantized".lstrip(".")
    while name in dict(work.root.named_parameters(remove_duplicate=False)):
        name += "_"
    return name
