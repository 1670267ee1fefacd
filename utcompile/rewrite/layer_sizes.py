"""The attributes in which a layer says how large it is: after its weight was exchanged, they say what is true."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd

_ROWS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.Linear, "out_features"),
    (nn.Bilinear, "out_features"),
    (_ConvNd, "out_channels"),
    (nn.Embedding, "num_embeddings"),
    (nn.EmbeddingBag, "num_embeddings"),
)


def fit_sizes(module: nn.Module) -> None:
    """Let each layer in a module name the number of rows that its weight has, as of a head with other classes."""
    for layer in module.modules():
        weight = layer._parameters.get("weight")
        name = next((name for kind, name in _ROWS if isinstance(layer, kind)), None)
        if weight is None or name is None or getattr(layer, "transposed", False):
            continue
        if getattr(layer, name) != weight.shape[0]:
            setattr(layer, name, weight.shape[0])
