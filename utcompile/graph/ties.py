"""Ties: one parameter under several names, as an embedding that is a language model's head too."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import nn

from utcompile.graph.memory import memory_of
from utcompile.graph.state import set_parameter

Ties = tuple[tuple[str, ...], ...]


def ties_of(module: nn.Module) -> Ties:
    """The names of each parameter that has several: one object, or several over the same memory.

    >>> first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> second.weight = first.weight
    >>> ties_of(nn.Sequential(first, second))
    (('0.weight', '1.weight'),)
    """
    names: dict[object, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(_place(parameter), []).append(name)
    return tuple(tuple(every) for every in names.values() if len(every) > 1)


def tied_to(names: Iterable[str], ties: Ties, untied: Collection[str] = ()) -> tuple[str, ...]:
    """Some parameters' names with the names of all that are tied to them, each once."""
    found: dict[str, None] = {}
    for name in names:
        group = next((g for g in ties if name in g), (name,)) if name not in untied else (name,)
        found.update(dict.fromkeys([name, *(n for n in group if n not in untied)]))
    return tuple(found)


def clones(parameters: Mapping[str, nn.Parameter], untied: Collection[str] = ()) -> dict[str, nn.Parameter]:
    """A trainable copy of each parameter; those that are tied get one copy for all their names."""
    made: dict[object, nn.Parameter] = {}
    found = {}
    for name, parameter in parameters.items():
        key = name if name in untied else _place(parameter)
        if key not in made:
            made[key] = nn.Parameter(parameter.detach().clone(), requires_grad=True)
        found[name] = made[key]
    return found


def cut_ties(module: nn.Module, ties: Ties) -> tuple[str, ...]:
    """A phrase for each tie that a module has no longer; names whose values are equal are tied again."""
    named = dict(module.named_parameters(remove_duplicate=False))
    found = []
    for group in ties:
        present = [name for name in group if name in named]
        for i, name in enumerate(present[1:], 1):
            kept = next((n for n in present[:i] if _is_same(named[n], named[name])), None)
            if kept is not None:
                named[name] = named[kept]
                set_parameter(module, name, named[name])
            else:
                found.append(f"{name} is no longer tied to {present[0]}")
    return tuple(found)


def owned(module: nn.Module, trained: Sequence[torch.Tensor]) -> None:
    """Give a module its own copy of every parameter and buffer that lies in the memory of others."""
    theirs = {memory_of(t) for t in trained}
    copied: dict[object, torch.Tensor] = {}
    for owner in module.modules():
        for table in (owner._parameters, owner._buffers):
            for name, tensor in table.items():
                if tensor is not None and memory_of(tensor) in theirs:
                    place = _place(tensor)
                    if place not in copied:
                        own = tensor.detach().clone()
                        is_parameter = isinstance(tensor, nn.Parameter)
                        copied[place] = nn.Parameter(own, requires_grad=tensor.requires_grad) if is_parameter else own
                    table[name] = copied[place]  # type: ignore[assignment]


def _is_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a is b or (a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b))


def _place(tensor: torch.Tensor) -> object:
    """Equal for tensors that are one: the same numbers of the same memory."""
    if not tensor.numel():
        return id(tensor)
    try:
        layout = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
    except (NotImplementedError, RuntimeError):
        return id(tensor)
    return (*layout, tensor.dtype, type(tensor))
