"""Calls of `scaled_dot_product_attention`, read and written by the names of its arguments."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import fx

_SCHEMA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
_DEFAULTS = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}


def is_fused_attention(node: fx.Node) -> bool:
    """Whether a node is such a call."""
    return node.op == "call_function" and node.target is F.scaled_dot_product_attention


def fused_arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a fused call by name, defaults included."""
    return {**_DEFAULTS, **dict(zip(_SCHEMA, node.args, strict=False)), **node.kwargs}


def set_fused_arguments(node: fx.Node, **changed: Any) -> None:
    """Give a fused call other arguments; what it was not given and what does not change keep their defaults."""
    given = {**dict(zip(_SCHEMA, node.args, strict=False)), **node.kwargs, **changed}
    node.args = tuple(given.pop(name) for name in _SCHEMA[:3])
    node.kwargs = given
