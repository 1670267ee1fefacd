"""The bytes that a forward keeps for backward, measured on a batch of the data."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.data import DataLoader

from utcompile.train import Data
from utcompile.train.metrics import called


def kept_bytes(model: nn.Module, data: Data, batch_size: int) -> int:
    """The bytes that one sample's forward keeps for backward, without parameters and buffers."""
    inputs, targets = next(iter(DataLoader(data.train, batch_size, collate_fn=data.collate)))
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}
    mode = model.training

    def keep(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return saved

    model.train()
    try:
        with torch.random.fork_rng(devices=[]), saved_tensors_hooks(keep, lambda saved: saved):
            output = called(model, tuple(inputs) if isinstance(inputs, list) else inputs)
        del output
    finally:
        model.train(mode)
    return sum(storage.nbytes() for storage in kept.values()) // len(targets)
