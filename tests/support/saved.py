"""What autograd saves of a forward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks


def saved_bytes(own: nn.Module, call: Callable[[], object]) -> int:
    """The bytes that a call saves for backward, a module's own tensors aside; memory that is shared counts once."""
    mine = {t.untyped_storage()._cdata for t in [*own.parameters(), *own.buffers()]}
    found: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no other storage gets the address

    def keep(value: torch.Tensor) -> torch.Tensor:
        found[value.untyped_storage()._cdata] = value.untyped_storage()
        return value

    with saved_tensors_hooks(keep, lambda value: value):
        call()
    return sum(storage.nbytes() for address, storage in found.items() if address not in mine)
