"""Nodes are named for the module they run in, so that a printed graph reads like the model."""

from __future__ import annotations

import re
from collections import Counter

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
        if node.op in ("call_module", "get_attr"):
            words = str(node.target)
        else:
            verb = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "value")
            words = f"{origin_of(node).path}.{str(verb).strip('_')}"
        name = re.sub(r"\W+", "_", words).strip("_") or "value"
        name = f"_{name}" if name[0].isdigit() else name
        number = used[name]
        used[name] += 1
        node._rename(f"{name}_{number}" if number else name)
