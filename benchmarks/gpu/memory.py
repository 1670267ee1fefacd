"""Bytes that a forward pass keeps for the backward pass, and bytes that a step needs at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def kept(forward: Callable[[], torch.Tensor], device: str) -> int:
    """Bytes that are alive after forward and were not before, while its loss is: what autograd keeps, by any means.

    Hooks on saved tensors do not see what other hooks keep; the memory itself does.
    """
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        loss = forward()
        return torch.cuda.memory_allocated() - before - loss.nbytes
    with _Made() as made:
        loss = forward()
    return made.alive() - loss.nbytes


class _Made(TorchDispatchMode):
    """Follows the memory of every operation's result."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in given:
                memory = tensor.untyped_storage()
                self.memory[memory._cdata] = StorageWeakRef(memory), memory.nbytes()
        return result

    def alive(self) -> int:
        """Bytes of the results that something still refers to."""
        return sum(size for reference, size in self.memory.values() if not reference.expired())


def peak(run: Callable[[], None], device: str) -> int:
    """Bytes that a step needs at once beyond what is there before it: weights, optimizer and inputs; 0 on a CPU."""
    if device != "cuda":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before
