"""The flat graph of a nested module: empty, and filled with the nested module's values when a verb needs it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import fx, nn

from utcompile.graph import every_name, owner_of, path_in
from utcompile.rewrite.originals import NAME, Originals
from utcompile.rewrite.unwrap import plain_path

_M = TypeVar("_M", bound=nn.Module)


def hollow(tuned: _M, others: list[torch.Tensor]) -> _M:
    """A copy without values: no weight that is sharded later stays in memory because of it.

    Args:
        tuned: a tuned module.
        others: tensors that it keeps next to its own, which the copy shares: those of tasks that wait.
    """
    memo: dict[int, object] = {id(tensor): tensor for tensor in others}
    for tensor in (*tuned.parameters(), *tuned.buffers()):
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
    return copy.deepcopy(tuned, memo)


def fill(flat: nn.Module, base: fx.Graph, nested: nn.Module, moved: Mapping[str, str]) -> None:
    """Give a flat module the present parameters and buffers of the nested one: sharded, moved or cast.

    Args:
        flat: what `hollow` returned.
        base: the graph of its base.
        nested: the nested module.
        moved: the new paths of modules that are in a region now.
    """
    now = {plain_path(nested, name): tensor for name, tensor in every_name(nested)}
    for name, _ in list(every_name(flat)):
        value = now.get(_new_name(name, moved))
        if value is not None and not name.startswith(f"{NAME}."):
            owner, attribute = owner_of(flat, name)
            if attribute in owner._parameters:
                assert isinstance(value, nn.Parameter)
                owner._parameters[attribute] = value
            else:
                owner._buffers[attribute] = value
    _fill_originals(flat, base, nested)


def _fill_originals(flat: nn.Module, base: fx.Graph, nested: nn.Module) -> None:
    """The base's values of what trains: the root and each region have some of them, each under its own numbers."""
    store = flat._modules.get(NAME)
    if not isinstance(store, Originals):
        return
    values: dict[str, nn.Parameter] = {}
    for path, module in nested.named_modules():
        if isinstance(module, Originals):
            around = plain_path(nested, path).removesuffix(NAME).removesuffix(".")
            values |= {path_in(around, n): module.get_parameter(str(i)) for i, n in enumerate(module.names)}
    filled = Originals(store.names, values)
    filled.add_twins(base, flat)
    flat._modules[NAME] = filled


def _new_name(name: str, moved: Mapping[str, str]) -> str:
    return next((new + name[len(old) :] for old, new in moved.items() if name.startswith(f"{old}.")), name)
