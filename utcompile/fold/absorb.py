"""Absorption: the tuner's effect becomes part of a frozen weight, and no operation is left.

1. LoRA as a branch, `y + s·B(A(x))`: `W += s·BA`, and the sum goes.
2. LoRA reparametrised, `OP(x; T(W))`: `W = T(W)`, and the original call comes back.
"""

from __future__ import annotations

import torch
from torch import fx

from utcompile.fold.layers import Unfoldable, Work
from utcompile.graph import is_state, operation
from utcompile.rewrite import TunedSite
from utcompile.tuners import Lora

_RETAINED = 0.95  # below this share of the tuner's effect, rounding has eaten it: the site is kept


def absorb(work: Work, site: TunedSite, nodes: dict[str, list[fx.Node]]) -> tuple[list[fx.Node], float]:
    """Fold a weight tuner.

    Returns:
        The nodes that now yield what it changed, and the share of its effect that rounding leaves.

    Raises:
        Unfoldable: the weight is shared with an operation outside the site, or rounding would lose the effect.
    """
    tuner = work.root.get_submodule(site.name)
    assert isinstance(tuner, Lora)
    calls = nodes["operation"] if "operation" in nodes else [_tuned_call(work, s) for s in nodes["sum"]]
    name = _weight_name(work, calls[0], nodes)
    _check_readers(work, name, set(calls) | set(nodes["tuner"]))
    weight = work.state(name)
    changed = weight + tuner.delta(torch.float64).detach().cpu()
    retained = _retained(weight, changed, work.home_of(name)[0])
    if retained < _RETAINED:
        raise Unfoldable(f"rounding to the weight's dtype would keep {retained:.0%} of the tuner's effect")
    work.put(name, changed)
    results = [_drop(work, total) for total in nodes.get("sum", ())]
    results += [_restore(work, call) for call in nodes.get("operation", ())]
    return results, retained


def _drop(work: Work, total: fx.Node) -> fx.Node:
    """Take a branch and its sum out."""
    value, added = total.args
    assert isinstance(value, fx.Node) and isinstance(added, fx.Node)
    total.replace_all_uses_with(value)
    work.graph.erase_node(total)
    work.graph.erase_node(added)
    return value


def _tuned_call(work: Work, total: fx.Node) -> fx.Node:
    """The operation whose result a branch is added to, below the sums of other sites."""
    node = total.args[0]
    assert isinstance(node, fx.Node)
    while node.meta.get("role") == "sum":
        inner = node.args[0]
        assert isinstance(inner, fx.Node)
        node = inner
    return node


def _weight_name(work: Work, call: fx.Node, nodes: dict[str, list[fx.Node]]) -> str:
    if "operation" in nodes:
        weight = nodes["tuner"][0].args[0]
        assert isinstance(weight, fx.Node)
        return str(weight.target)
    return operation(call, work.root).parameters["weight"]


def _check_readers(work: Work, name: str, mine: set[fx.Node]) -> None:
    """Every reader of the weight must be part of the site; a tie to another name is cut by the new parameter."""
    owner = name.rpartition(".")[0]
    for node in work.graph.nodes:
        reads = node.op == "call_module" and str(node.target) == owner
        reads |= node.op == "get_attr" and str(node.target) == name and not set(node.users) <= mine
        if reads and node not in mine:
            raise Unfoldable(f"the weight {name} is shared with {node.name}, which is not tuned")


def _retained(before: torch.Tensor, after: torch.Tensor, dtype: torch.dtype) -> float:
    """`<round(W + Δ) − W, Δ> / <Δ, Δ>`: 1 where rounding loses nothing of the update."""
    delta = after - before
    energy = (delta * delta).sum()
    if energy == 0:
        return 1.0
    return (((after.to(dtype).double() - before) * delta).sum() / energy).item()


def _restore(work: Work, call: fx.Node) -> fx.Node:
    """Put a module's call back in place of the function that took the tuner's weight; a function reads its own."""
    before = call.all_input_nodes
    source, tuner = call.args[:2]
    assert isinstance(source, fx.Node) and isinstance(tuner, fx.Node)
    module = call.meta.pop("module_call")
    for key in ("site", "role"):
        del call.meta[key]
    if module is None:
        call.args = (source, tuner.args[0], *call.args[2:])
    else:
        if source.meta.get("role") == "padding":
            source = source.all_input_nodes[0]
        with work.graph.inserting_before(call):
            node = work.graph.call_module(module, (source,))
        node.meta = dict(call.meta)
        call.replace_all_uses_with(node)
        work.graph.erase_node(call)
        call = node
    _sweep(work, before)
    return call


def _sweep(work: Work, nodes: list[fx.Node]) -> None:
    """Erase what nothing reads any more: the tuner, its weight, an explicit padding."""
    for node in nodes:
        if not node.users and (is_state(node) or node.meta.get("role") in ("tuner", "padding")):
            inputs = node.all_input_nodes
            work.graph.erase_node(node)
            _sweep(work, inputs)
