"""Whether what processes have of distributed tensors is as it was, which no process can know alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from utcompile.graph.memory import memory_of

Shares = dict[str, tuple[int, ...]]


def shares_of(tensors: Mapping[str, torch.Tensor]) -> Shares | None:
    """This process's part of each tensor, equal while nothing writes into it; None where none is distributed."""
    if not any(hasattr(value, "full_tensor") for value in tensors.values()):
        return None
    return {name: _share(value) for name, value in tensors.items()}


def _share(value: torch.Tensor) -> tuple[int, ...]:
    local = getattr(value, "_local_tensor", value)
    return id(value), value._version, memory_of(local), local._version


def same_everywhere(now: Shares, before: Shares | None, device: torch.device) -> bool:
    """Whether the parts are as they were in every process; every process must call it."""
    same = torch.tensor(int(now == before), device=device)
    torch.distributed.all_reduce(same, torch.distributed.ReduceOp.MIN)
    return bool(same)
