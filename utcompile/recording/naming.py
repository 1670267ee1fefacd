"""Nodes are named for the module they run in, so that a printed graph reads like the model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from torch import fx

from utcompile.graph import origin_of


def rename_by_path(graph: fx.Graph) -> None:
    """`blocks_0_attn_qkv` for a module call, `blocks_0_attn_reshape` for a call made in `blocks.0.attn`."""
    used: Counter[str] = Counter()
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            used[node.name] += 1
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        name = re.sub(r"\W+", "_", _words(node)).strip("_") or "value"
        name = f"_{name}" if name[0].isdigit() else name
        number = used[name]
        used[name] += 1
        node._rename(f"{name}_{number}" if number else name)


def dotted_names(graph: fx.Graph) -> Mapping[fx.Node, str]:
    """`blocks.0.attn.qkv`, `blocks.0.attn.reshape_1`: names for messages, numbered in graph order as nodes are."""
    used: Counter[str] = Counter()
    found: dict[fx.Node, str] = {}
    for node in graph.nodes:
        words = node.name if node.op in ("placeholder", "output") else _words(node).strip(".")
        found[node] = f"{words}_{used[words]}" if used[words] else words
        used[words] += 1
    return found


def _words(node: fx.Node) -> str:
    if node.op in ("call_module", "get_attr"):
        return str(node.target)
    verb = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "value")
    return f"{origin_of(node).path}.{str(verb).strip('_')}"
