"""New buffers next to the layers that they serve."""

from __future__ import annotations

import torch
from torch import fx

from utcompile.folding.folding import Folding
from utcompile.folding.patch import Added, Draft, New
from utcompile.graph import origin_of, value_of


def new_buffer(model: Folding, draft: Draft, path: str, name: str, value: torch.Tensor, node: fx.Node) -> Added:
    """A buffer next to the layers that it serves, and the node that reads it, before a node."""
    try:
        owner = model.root.get_submodule(path)
    except AttributeError:  # where a parameter stands alone, its module was never called
        owner, path = model.root, ""
    while hasattr(owner, name):
        name += "_"
    qualified = f"{path}.{name}".lstrip(".")
    draft.values[qualified] = New(value.detach().clone().contiguous(), model.home, buffer=True)
    read = Added("get_attr", qualified, (), node, origin_of(node), state=True, value=value_of(node))
    draft.edits.append(read)
    return read
