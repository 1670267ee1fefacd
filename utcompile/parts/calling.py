"""A call of a model that leaves no trace, and the comparison of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from utcompile.graph.nested import map_tensors, tensors
from utcompile.graph.values_kept import values_kept
from utcompile.recording.untouched import random_numbers_kept, seed


def computed(module: nn.Module, call: Mapping[str, object]) -> list[torch.Tensor]:
    """The tensors in a model's result, from seed 0: buffers, inputs and random numbers are as before.

    Args:
        module: in the mode that it is in.
        call: its `args` and `kwargs`.
    """
    with torch.no_grad(), random_numbers_kept(module) as gpus, values_kept(module) as memory:
        seed(gpus)
        args, kwargs = map_tensors(torch.clone, (call["args"], call["kwargs"]))
        assert isinstance(args, tuple) and isinstance(kwargs, dict)
        outputs = tensors(module(*args, **kwargs))
        return [o.clone() if memory.shares(o) else o for o in outputs]


def same_outputs(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    """Whether outputs are equal, bit for bit."""
    return len(found) == len(expected) and all(
        a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(found, expected, strict=True)
    )
