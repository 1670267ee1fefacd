"""In-place operations become out-of-place ones wherever no other value lives in the same memory.

What cannot be converted stays as it was recorded, in its place, and is a barrier that no tuner crosses:
1. an alias of what is written is read later (a view, or the value before the write);
2. it writes into a parameter or buffer, whose change must outlive the call;
3. there is no out-of-place twin (`x[…] = y`, `copy_`).
"""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.node import Target

from utcompile.graph import InPlace, index_memory, info, is_state, value_of

_OUT_OF_PLACE: dict[Target, Target] = {
    getattr(operator, f"i{name}"): getattr(operator, name if name not in ("and", "or") else f"{name}_")
    for name in "add sub mul truediv floordiv mod pow and or xor".split()
}


def make_functional(graph: fx.Graph, root: nn.Module) -> tuple[fx.Node, ...]:
    """Convert the writes that can be converted; returns those that remain."""
    position, by_storage, calls = index_memory(graph)
    writes = [n for n in position if info(n).mutates]
    # a storage number names memory as recorded; once a write has become out of place, what follows lives elsewhere
    aliased = {n: _is_aliased(n, by_storage, position) for n in writes}
    left = []
    inplace = {n: _is_inplace(n, root) for n in writes}  # asked before the first call of a shared module converts it
    for node in writes:
        siblings = calls[str(node.target)] if node.op == "call_module" else []
        if aliased[node] or any(aliased.get(s) for s in siblings) or not _convert(node, root, inplace[node]):
            left.append(node)
        else:
            del info(node).mutates
    return tuple(left)


def _is_aliased(node: fx.Node, by_storage: dict[int, list[fx.Node]], position: dict[fx.Node, int]) -> bool:
    at = position[node]
    for written in info(node).mutates:
        value = value_of(written)
        if value is None or is_state(written):
            return True
        for other in by_storage[value.storage]:
            if position[other] < at and any(position[u] > at for u in other.users):
                return True
    return False


def _is_inplace(node: fx.Node, root: nn.Module) -> bool:
    """Whether a module writes because of its flag `inplace`."""
    return node.op == "call_module" and bool(getattr(root.get_submodule(str(node.target)), "inplace", False))


def _convert(node: fx.Node, root: nn.Module, inplace: bool) -> bool:
    written = value_of(info(node).mutates[0])
    yielded = value_of(node)
    if yielded is None or written is None or yielded.dtype != written.dtype or yielded.shape != written.shape:
        return False
    if node.op == "call_module":
        if inplace:
            root.get_submodule(str(node.target)).inplace = False  # type: ignore[assignment]
            info(node).inplace = InPlace()
        return inplace
    if node.kwargs.get("inplace"):
        node.kwargs = {k: v for k, v in node.kwargs.items() if k != "inplace"}
        info(node).inplace = InPlace()
        return True
    plain = _out_of_place(node)
    if plain is not None:
        info(node).inplace = InPlace((node.op, node.target), plain)
        node.op, node.target = plain
        return True
    if getattr(F, getattr(node.target, "__name__", ""), None) is node.target and node.args[-1:] == (True,):
        node.args = node.args[:-1]  # `F.relu(x, True)`: the last positional argument is the flag
        info(node).inplace = InPlace()
        return True
    return False


def _out_of_place(node: fx.Node) -> tuple[str, Target] | None:
    """The twin of a call that writes: op and target."""
    if node.op == "call_method":
        name = str(node.target)
        return ("call_method", name[:-1]) if name.endswith("_") and hasattr(torch.Tensor, name[:-1]) else None
    if node.target in _OUT_OF_PLACE:
        return "call_function", _OUT_OF_PLACE[node.target]
    name = getattr(node.target, "__name__", "")
    twin = getattr(F, name[:-1], None) or getattr(torch, name[:-1], None) if name.endswith("_") else None
    return None if twin is None else ("call_function", twin)
