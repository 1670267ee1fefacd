"""Attention stays as the model's author wrote it: a mask that follows from sizes alone is removed from the call.

Models that check whether they are traced build masks and repeat keys, where their eager code says `is_causal=True,
enable_gqa=True` or passes no mask at all; only without a mask do the fastest kernels run. Here
1. a mask that depends on sizes alone and is the causal one at every size becomes `is_causal=True`; one that hides
   nothing is left out;
2. keys and values that are repeated for groups of queries become `enable_gqa=True` on those that are not.
Every mask that is not provably one of these stays as it was recorded.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx, nn

from utcompile.graph import fused_arguments, info, is_fused_attention, set_fused_arguments, tensor, value_of
from utcompile.recording.grouped import group_queries
from utcompile.recording.sizes_alone import (
    NEVER,
    AtSizes,
    cone,
    from_sizes,
    reach,
    symbols_of,
    telling_sizes,
    written_storages,
)

T = torch.Tensor
_FLOATING = (torch.float32, torch.bfloat16, torch.float16)
_CAUSAL, _NONE = "causal", "none"


def settle_attention(graph: fx.Graph, root: nn.Module) -> None:
    """Give `scaled_dot_product_attention` `is_causal` and `enable_gqa` instead of such masks and repeated keys."""
    calls = [n for n in graph.nodes if is_fused_attention(n)]
    if not calls:
        return
    masked = [c for c in calls if isinstance(fused_arguments(c)["attn_mask"], fx.Node)]
    alone = from_sizes(graph, root) if masked else frozenset()
    unread = alone if _settle_masks(masked, alone, root) else frozenset()
    written = written_storages(graph)
    for call in calls:
        unread |= group_queries(call, root, written)
    if unread:
        _erase_unused(unread, graph)


def _settle_masks(calls: Iterable[fx.Node], alone: frozenset[fx.Node], root: nn.Module) -> bool:
    """Whether a call lost its mask."""
    known: dict[str, str | None] = {}
    for call in calls:
        given = fused_arguments(call)
        if given["attn_mask"] not in alone or given["is_causal"] is not False or not _has_lengths(call):
            continue
        key = _written(call, alone)
        if key not in known:
            known[key] = _meaning(call, alone, root)
        if known[key] is not None:
            set_fused_arguments(call, attn_mask=None, is_causal=known[key] == _CAUSAL)
    return any(known.values())


def _has_lengths(call: fx.Node) -> bool:
    """Whether queries and keys are tensors of the graph that have a length."""
    parts = (fused_arguments(call)[name] for name in ("query", "key"))
    return all(isinstance(n, fx.Node) and (v := value_of(n)) is not None and v.rank > 1 for n in parts)


def _written(call: fx.Node, alone: frozenset[fx.Node]) -> str:
    """A mask's computation as text: equal for layers that build one mask each."""
    given = fused_arguments(call)
    nodes = cone(given["attn_mask"], alone)
    number = {node: f"%{i}" for i, node in enumerate(nodes)}

    def shown(node: fx.Node) -> str:
        value = value_of(node)
        return number.get(node, "") or f"{value} {value.dtype if value is not None else ''}"

    lines = [(n.op, n.target, fx.node.map_arg((n.args, n.kwargs), shown)) for n in nodes]
    return repr((lines, [tensor(given[name]).shape for name in ("query", "key")]))


def _meaning(call: fx.Node, alone: frozenset[fx.Node], root: nn.Module) -> str | None:
    """The meaning of a mask at all sizes; None where it is neither the causal one nor none."""
    given = fused_arguments(call)
    mask, query, key = (given[name] for name in ("attn_mask", "query", "key"))
    nodes = cone(mask, alone)
    sources = {v for n in nodes for i in n.all_input_nodes if i not in alone and (v := value_of(i)) is not None}
    dtypes = _FLOATING if any(v.dtype.is_floating_point for v in sources) else _FLOATING[:1]
    left = {_CAUSAL, _NONE}
    for sizes in telling_sizes(symbols_of([*nodes, call]), reach(nodes, root)):
        for floating in dtypes:
            at = AtSizes(root, alone, sizes, floating)
            left &= _meanings(at, mask, at.shape(query), at.shape(key))
            if not left:
                return None
    return _NONE if _NONE in left else _CAUSAL


def _meanings(at: AtSizes, mask: fx.Node, query: tuple[int, ...], key: tuple[int, ...]) -> set[str]:
    """The meanings that a mask may have at one choice of sizes."""
    try:
        with torch.no_grad(), torch.device("cpu"), torch.amp.autocast_mode.autocast("cpu", enabled=False):
            found = at(mask)
    except Exception:  # whatever torch raises at sizes that the model need not take
        return set()
    scores = (*query[:-1], key[-2])
    if not _fits(tuple(found.shape), scores):
        return set()
    seen = _seen(found)
    if seen is None:
        return set()
    causal = torch.ones(scores[-2:], dtype=torch.bool).tril()
    return {what for what, is_so in ((_CAUSAL, (seen == causal).all()), (_NONE, seen.all())) if is_so}


def _fits(mask: tuple[int, ...], scores: tuple[int, ...]) -> bool:
    """Whether a mask is broadcast to the scores, and no score to the mask."""
    return len(mask) <= len(scores) and all(m in (1, s) for m, s in zip(mask[::-1], scores[::-1], strict=False))


def _seen(mask: T) -> T | None:
    """The keys that each query sees; None where a mask does more than hide some."""
    if mask.dtype == torch.bool:
        return mask
    if not mask.dtype.is_floating_point:
        return None
    seen, hidden = mask == 0, (mask <= NEVER) | (mask == torch.finfo(mask.dtype).min)
    return seen if bool((seen | hidden).all()) else None


def _erase_unused(unread: frozenset[fx.Node], graph: fx.Graph) -> None:
    """Erase nodes without effects that nothing reads any more."""
    erased = set()
    read = {
        n for n in unread if n.users or value_of(n) is not None
    }  # a check of sizes is read by nothing from the start
    for node in reversed(graph.nodes):
        if node in read and not node.users:
            erased.add(node)
            graph.erase_node(node)
    for node in graph.nodes:
        _forget(node, erased)


def _forget(node: fx.Node, erased: set[fx.Node]) -> None:
    """Forget the calls of modules that began with an erased node: a rule can no longer name them."""
    if erased & {*info(node).ends_from}:
        known = info(node)
        pairs = [p for p in zip(known.ends, known.ends_from, strict=True) if p[1] not in erased]
        known.ends, known.ends_from = tuple(frame for frame, _ in pairs), tuple(read for _, read in pairs)
