"""Calls of `scaled_dot_product_attention`, read and written by the names of its arguments."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import fx
from torch.fx.node import Argument

from utcompile.graph.spellings import FUNCTIONS

_SPELLING = FUNCTIONS[F.scaled_dot_product_attention]
_SCHEMA, _DEFAULTS = _SPELLING.schema, _SPELLING.defaults


def is_fused_attention(node: fx.Node) -> bool:
    """Whether a node is such a call."""
    return node.op == "call_function" and node.target is F.scaled_dot_product_attention


def fused_arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a fused call by name, defaults included."""
    return {**_DEFAULTS, **dict(zip(_SCHEMA, node.args, strict=False)), **node.kwargs}


def set_fused_arguments(node: fx.Node, **changed: Argument) -> None:
    """Give a fused call other arguments; all others stay as they are."""
    given = {**dict(zip(_SCHEMA, node.args, strict=False)), **node.kwargs, **changed}
    node.args = tuple(given.pop(name) for name in _SCHEMA[:3])
    node.kwargs = given
