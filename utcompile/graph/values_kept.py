"""Running a model without a trace in its tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from utcompile.graph.memory import KeptMemory
from utcompile.graph.structure import attribute_tensors


@contextmanager
def values_kept(*models: nn.Module) -> Iterator[KeptMemory]:
    """Put back all values that code inside writes into the models' parameters, buffers and attribute tensors."""
    weights = [p for m in models for p in m.parameters()]
    plain = [t for m in models for _, t in attribute_tensors(m).values()]
    buffers = [b for m in models for b in m.buffers()]
    leaves = [t for t in [*buffers, *plain] if t.is_leaf and not t.requires_grad]
    memory = KeptMemory([*weights, *plain], buffers)
    try:
        with memory:
            yield memory
    finally:
        memory.put_back()
        for tensor in leaves:
            if tensor.requires_grad:  # the values written into it have a gradient
                tensor.detach_()
