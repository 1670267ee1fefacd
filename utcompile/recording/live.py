"""Which node made a value, by the value's identity, for as long as the value lives.

Tensors are referenced weakly, so that a recording that computes frees its values as a plain forward does. An identity,
and the address of a storage, may be used again when its owner is gone, so both are forgotten with it.
"""

from __future__ import annotations

import weakref

import torch
from torch import fx

from utcompile.graph.memory import memory_of


class LiveNodes:
    """A mapping from live values to their nodes.

    Example:
        >>> node, value = fx.Graph().placeholder("x"), torch.zeros(2)
        >>> nodes = LiveNodes()
        >>> nodes.bind(value, node), nodes.get(value)
        (1, x)
    """

    def __init__(self) -> None:
        self._nodes: dict[int, fx.Node] = {}
        self._held: dict[int, tuple[object, int]] = {}  # a weak reference or the value itself, and its storage's number
        self._storages: dict[int, list[int]] = {}  # address -> number, and how many live tensors share it
        self._count = 0

    def __contains__(self, value: object) -> bool:
        return id(value) in self._nodes

    def __getitem__(self, value: object) -> fx.Node:
        return self._nodes[id(value)]

    def get(self, value: object) -> fx.Node | None:
        """The node that made a value; None where it is not known."""
        return self._nodes.get(id(value))

    def bind(self, value: object, node: fx.Node) -> int:
        """From here on, a value is what `node` yields; the number of its storage, which no other storage was given."""
        key = id(value)
        if key not in self._held:
            self._held[key] = self._watched(value) if isinstance(value, torch.Tensor) else (value, 0)
        self._nodes[key] = node
        return self._held[key][1]

    def _watched(self, tensor: torch.Tensor) -> tuple[weakref.ref[torch.Tensor], int]:
        key, address = id(tensor), memory_of(tensor)
        if address not in self._storages:
            self._count += 1
            self._storages[address] = [self._count, 0]
        storage = self._storages[address]
        storage[1] += 1

        def forget(_: object) -> None:
            del self._held[key]
            self._nodes.pop(key, None)
            storage[1] -= 1
            if not storage[1]:
                del self._storages[address]

        return weakref.ref(tensor, forget), storage[0]
