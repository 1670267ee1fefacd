"""Parameters and FLOPs of parts of a graph, by the measure of the plan: two for each multiply-add, none elementwise."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from utcompile.folding.algebra.parameters import of_parameters
from utcompile.graph import (
    Role,
    Value,
    ancestors,
    flops,
    info,
    is_parameter,
    operation,
    run_node,
    state_at,
    value_of,
)
from utcompile.ops import Trait, having

_COUNTED = having(Trait.COUNTED)


def count(root: nn.Module, nodes: Iterable[fx.Node]) -> tuple[int, int | None]:
    """The distinct parameters that nodes read, and their FLOPs for one sample; None where a tuner does not say."""
    parameters: dict[str, int] = {}
    total: int | None = 0
    for node in nodes:
        parameters |= _parameters(root, node)
        try:
            own = _flops(root, node)
        except Exception:  # a plugin may do in `forward` what shapes alone do not allow
            total = None
            continue
        total = None if total is None else total + own
    return sum(parameters.values()), total


def _parameters(root: nn.Module, node: fx.Node) -> dict[str, int]:
    found: dict[str, int] = {}
    if node.op == "call_module":
        leaf = root.get_submodule(str(node.target))
        found = {f"{node.target}.{n}": p.numel() for n, p in leaf.named_parameters()}
    for state in ancestors([n for n in node.all_input_nodes if of_parameters(n)]):
        name = str(state.target)
        if state.op == "get_attr" and is_parameter(root, name):
            found[name] = state_at(root, name).numel()
        elif state.op == "call_module":
            found |= _parameters(root, state)
    return found


def _flops(root: nn.Module, node: fx.Node) -> int:
    if node.op not in ("call_module", "call_function", "call_method"):
        return 0
    if info(node).site is not None or info(node).role == Role.OPERATION:
        return _measured(root, node)
    op = operation(node, root)
    if op.name not in _COUNTED:
        return 0
    known, before = info(node), info(node).weight_shape
    if "weight" in op.parameters:
        known.weight_shape = tuple(state_at(root, op.parameters["weight"]).shape)
    found = flops(node, op, 1)
    del known.weight_shape  # what is counted may be taken back
    if before:
        known.weight_shape = before
    return found


def _measured(root: nn.Module, node: fx.Node) -> int:
    """A tuner's, or those of an operation that reads its parameters from one, by running shapes alone."""
    known: dict[fx.Node, object] = {}

    def value(n: fx.Node) -> object:
        if n not in known:
            given = value_of(n)
            if (size := info(n).size) is not None:
                known[n] = size.at(1)
            elif given is not None and not of_parameters(n):
                known[n] = _on_meta(given)
            else:
                known[n] = run_node(root, n, value, _shape_of)
        return known[n]

    inputs = [value(n) for n in node.all_input_nodes]  # not to be counted
    assert len(inputs) == len(node.all_input_nodes)
    with FlopCounterMode(display=False) as counter:
        run_node(root, node, value, _shape_of)
    return int(counter.get_total_flops())


def _shape_of(name: str, state: torch.Tensor) -> torch.Tensor:
    return torch.empty(state.shape, dtype=_one_dtype(state.dtype), device="meta")


def _on_meta(value: Value) -> torch.Tensor:
    return torch.empty(value.sizes(1), dtype=_one_dtype(value.dtype), device="meta")


def _one_dtype(dtype: torch.dtype) -> torch.dtype:
    """What a model was captured in, and what it has been cast to since, must not meet."""
    return torch.float32 if dtype.is_floating_point else dtype
