"""Grouped queries: keys and values that are repeated for every group of heads, given to attention as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

import torch
from torch import fx, nn

from utcompile.graph import fused_arguments, info, inserted, operation, set_fused_arguments, tensor, value_of
from utcompile.ops import Trait, having
from utcompile.recording.sizes_alone import AtSizes, is_number, symbols_of

_MOVES = having(Trait.AXES | Trait.SAME | Trait.REPEATS | Trait.CUTS)
_WIDEST = 256  # channels of a head that fused kernels take
_SIZES = (1, 2, 3, 5, 7, 11)
_Order = tuple[int, ...]


def group_queries(call: fx.Node, root: nn.Module, written: frozenset[int]) -> set[fx.Node]:
    """Let an attention without a mask share keys between heads by `enable_gqa`; returns the nodes no longer read.

    Args:
        call: a call of `scaled_dot_product_attention`.
        root: the modules of the graph.
        written: the memory that the graph writes into.
    """
    given = fused_arguments(call)
    query, key, value = (given[name] for name in ("query", "key", "value"))
    if given["attn_mask"] is not None or given["enable_gqa"] is not False or not _has_heads(query, key, value):
        return set()
    if {tensor(n).shape[1] for n in (query, key, value)} != {tensor(query).shape[1]}:
        return set()
    found = [_ungrouped(n, root, written) for n in (key, value)]
    if found[0] is None or found[1] is None or _heads(*found[0]) != _heads(*found[1]):
        return set()
    shared = [_ordered(*part, call) for part in found if part is not None]
    set_fused_arguments(call, key=shared[0], value=shared[1], enable_gqa=True)
    return {n for k in (key, value) for n in _path(k, root)}


def _has_heads(query: fx.Node, key: fx.Node, value: fx.Node) -> bool:
    """Whether all are `(B, heads, tokens, channels)` with heads and channels that fused kernels take."""
    if any(not isinstance(n, fx.Node) or value_of(n) is None or tensor(n).rank != 4 for n in (query, key, value)):
        return False
    widths = {tensor(n).shape[3] for n in (query, key, value)}
    return len(widths) == 1 and all(isinstance(w, int) and w <= _WIDEST for w in widths)


def _heads(node: fx.Node, order: _Order) -> object:
    return tensor(node).shape[order[1]]


def _path(node: fx.Node, root: nn.Module) -> Iterator[fx.Node]:
    """The chain of moves that make a tensor, nearest first, without the tensor that they start from."""
    while (op := operation(node, root)).name in _MOVES and len(op.inputs) == 1:
        if not all(n is op.inputs[0] or is_number(n) for n in node.all_input_nodes) or _is_cast(node, op.inputs[0]):
            return
        yield node
        node = op.inputs[0]


def _is_cast(node: fx.Node, source: fx.Node) -> bool:
    mine, theirs = tensor(node), tensor(source)
    return (mine.dtype, mine.device) != (theirs.dtype, theirs.device)


def _ungrouped(node: fx.Node, root: nn.Module, written: frozenset[int]) -> tuple[fx.Node, _Order] | None:
    """The nearest tensor in other memory that a node repeats per head, and the order that its axes need."""
    passed: list[fx.Node] = []
    for step in _path(node, root):
        passed.append(step)
        source = operation(step, root).inputs[0]
        if {tensor(n).storage for n in (*passed, source)} & written:
            return None
        if tensor(source).rank != 4 or tensor(source).storage == tensor(node).storage:
            continue
        for order in permutations(range(4)):
            if _repeats(node, source, order) > 1 and _is_repeated(node, source, order, passed, root):
                return source, order
    return None


def _repeats(node: fx.Node, source: fx.Node, order: _Order) -> int:
    """How often the heads of a source, its axes reordered, fit into a node's, as far as shapes show; else 0."""
    shape, wanted = [tensor(source).shape[axis] for axis in order], tensor(node).shape
    own, heads = shape[1], wanted[1]
    if not (isinstance(own, int) and isinstance(heads, int)) or (shape[0], *shape[2:]) != (wanted[0], *wanted[2:]):
        return 0
    return heads // own if own and heads % own == 0 else 0


def _is_repeated(node: fx.Node, source: fx.Node, order: _Order, passed: list[fx.Node], root: nn.Module) -> bool:
    """Whether each head of the source is found next to itself in the node, at several sizes."""
    symbols = symbols_of(passed)
    for i in range(3):
        at = AtSizes(
            root, frozenset(), {s: n * _SIZES[(i + 2 * k) % len(_SIZES)] for k, (s, n) in enumerate(symbols.items())}
        )
        shape = at.shape(source)
        numbers = torch.arange(torch.Size(shape).numel(), device="cpu").reshape(shape)
        at.give(source, numbers)
        try:
            found = at(node)
        except Exception:  # whatever torch raises at sizes that the model need not take
            return False
        if not torch.equal(found, numbers.permute(order).repeat_interleave(_repeats(node, source, order), 1)):
            return False
    return True


def _ordered(source: fx.Node, order: _Order, call: fx.Node) -> fx.Node:
    """The source with its axes in the order of an attention's heads."""
    if order == (0, 1, 2, 3):
        return source
    with call.graph.inserting_before(call):
        made = call.graph.call_method("permute", (source, *order))
    shape = tuple(tensor(source).shape[axis] for axis in order)
    inserted(made, info(call).origin, value=replace(tensor(source), shape=shape))
    return made
