"""The place of `tokens: [k, v]`: the attention operation that reads k and v, fused or spelled out.

1. *Fused*: a call of `scaled_dot_product_attention`. Its keys, values and mask become longer.
2. *Spelled out*: `matmul(softmax(scores), v)`, where scores are `matmul(q, kᵀ)`, scaled, masked, biased. Only the input
   of softmax becomes wider: of the operations between scores and softmax, only the scales apply to the learned keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import fx

from utcompile.errors import UtcError
from utcompile.graph import (
    GraphView,
    Operation,
    Size,
    Value,
    describe,
    fused_arguments,
    is_fused_attention,
    operand,
    tensor,
    value_of,
)
from utcompile.matching.engine import Bindings
from utcompile.matching.heads import has_windows
from utcompile.ops import Trait, having
from utcompile.rules import TokensInsertion
from utcompile.tuners import Port, TokensSite

_PLAIN = having(Trait.SAME | Trait.DROPOUT)  # they change no shape
_LONGEST = 12


@dataclass(frozen=True)
class Attention:
    """An attention operation whose keys and values learned tokens can join.

    Attributes:
        node: the fused call, or the product of weights and values.
        query: `(…, N, d)`, as the operation reads it.
        key: `(…, S, d)`; `(…, d, S)` where it is spelled out.
        value: `(…, S, d_v)`.
        weights: the factor of the values, where attention is spelled out; otherwise None.
        softmax: the softmax that makes the weights.
        scales: the factors between the scores and softmax, in that order.
    """

    node: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    weights: fx.Node | None = None
    softmax: fx.Node | None = None
    scales: tuple[fx.Node, ...] = ()

    @property
    def keys(self) -> Value:
        """The keys as `(…, S, d)`."""
        value = tensor(self.key)
        if self.softmax is None:
            return value
        *rest, d, length = value.shape
        return replace(value, shape=(*rest, length, d))


def attention_of(insertion: TokensInsertion, env: Bindings, view: GraphView) -> Attention:
    """The attention operation that reads the two captures of `tokens:`; that of the match, where it binds one.

    Raises:
        UtcError: there is none, or its operations leave no place for tokens.
    """
    k, v = env[insertion.source], env[insertion.target]
    bound = [n for n in map(view.without_layout, env.values()) if view.operations[n].name == "sdpa"]
    for node in [*dict.fromkeys(bound), *view.by_class["sdpa"]]:
        if view.position[node] < max(view.position[k], view.position[v]):
            continue
        found = _read(node, view)
        if view.depends(found.key, k) and view.depends(found.value, v):
            return found
    raise UtcError(
        f"no attention reads '{insertion.source}' as its keys and '{insertion.target}' as its values",
        why="tokens are put before the keys and values of a softmax attention, fused or spelled out",
        fix="match `attention` and write tokens: [k, v]",
    )


def tokens_site(
    insertion: TokensInsertion, attention: Attention, *, captures: Mapping[str, Operation], view: GraphView
) -> TokensSite:
    """The site of a tuner of learned tokens, with keys and values as `(…, heads, tokens, channels)`."""
    keys, values = attention.keys, tensor(attention.value)
    if keys.rank < 3 or keys.rank != values.rank:
        raise UtcError(f"keys {keys} and values {values} have no heads", fix="exclude the place in `where:`")
    if view.channel_axis.get(attention.value) == values.rank - 2:
        raise _no_place(attention.node, "its softmax is over channels (cross-covariance attention), not over tokens")
    if has_windows(attention.value, view):
        raise _no_place(attention.node, "it attends within windows, whose axis is between the heads and the tokens")
    heads = _heads(keys)
    return TokensSite(
        source=Port(keys, keys.rank - 1, insertion.source),
        target=Port(values, values.rank - 1, insertion.target),
        captures=captures,
        heads=heads,
        repeats=_repeats(attention.key, heads, keys, view),
    )


def _heads(keys: Value) -> int:
    """The number of sets of keys per sample: axis -3, or the factor of the batch there in `(B·heads, S, d)`."""
    size = keys.shape[-3]
    if keys.rank > 3 and isinstance(size, int):
        return size
    if keys.rank == 3 and isinstance(size, Size):
        factor, rest = divmod(size.at(6), 6)
        if not rest and size.at(2) == 2 * factor:
            return factor
    raise UtcError(f"the heads of the keys {keys} have no separate axis", fix="exclude the place in `where:`")


def _repeats(key: fx.Node, heads: int, keys: Value, view: GraphView) -> int:
    """The number of heads that share one set of keys, where grouped-query attention repeats the keys."""
    for node in view.layout_chain(key):
        value = tensor(node)
        own = value.shape[-3] if value.rank > 3 and value.shape[-2:] == keys.shape[-2:] else heads
        if isinstance(own, int) and own < heads and heads % own == 0:
            return heads // own
    return 1


def _read(node: fx.Node, view: GraphView) -> Attention:
    if is_fused_attention(node):
        given = fused_arguments(node)
        parts = [given[name] for name in ("query", "key", "value")]
        if not all(isinstance(p, fx.Node) and value_of(p) is not None for p in parts):
            raise UtcError(f"the keys of {describe(node)} are no tensors of the graph")
        if isinstance(given["is_causal"], fx.Node):
            raise UtcError(
                f"whether {describe(node)} is causal is computed while the model runs",
                why="with tokens before the keys, is_causal=True would be another mask",
                fix="exclude the place in `where:`",
            )
        return Attention(node, *parts)
    return _spelled_out(node, view)


def _spelled_out(node: fx.Node, view: GraphView) -> Attention:
    weights, value = operand(node, "input"), _second(node)
    assert isinstance(weights, fx.Node)
    softmax = weights
    while view.operations[softmax].name != "softmax":
        if view.operations[softmax].name not in _PLAIN:
            raise _no_place(softmax, "the weights are reshaped before they meet the values")
        softmax = view.operations[softmax].inputs[0]
    if view.operations[softmax].attributes.get("dim") not in (-1, tensor(softmax).rank - 1):
        raise _no_place(softmax, "softmax is not over the last axis")
    scores, scales = _scores(softmax, view)
    query = operand(scores, "input")
    assert isinstance(query, fx.Node)
    return Attention(node, query, _second(scores), value, weights, softmax, scales)


def _scores(softmax: fx.Node, view: GraphView) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    """The product of queries and keys, and the factors between it and softmax."""
    scales: list[fx.Node] = []
    node = softmax
    for _ in range(_LONGEST):
        inputs, shape = view.operations[node].inputs, tensor(node).shape
        node = next((n for n in inputs if value_of(n) is not None and tensor(n).shape == shape), inputs[0])
        op = view.operations[node]
        if op.name == "matmul":
            if tensor(node).shape != tensor(softmax).shape:
                raise _no_place(softmax, "the scores are reshaped before softmax")
            return node, tuple(reversed(scales))
        if op.name in ("mul", "div"):
            states = [a for a in node.all_input_nodes if a not in op.inputs and value_of(a) is not None]
            alike = tensor(node).shape == tensor(softmax).shape and not any(map(_per_key, states))
            if len(op.inputs) != 1 or (states and not alike):
                raise _no_place(node, "the scores are scaled by a factor that differs from key to key")
            scales.append(node)
    raise _no_place(softmax, "no product of queries and keys leads to it")


def _per_key(factor: fx.Node) -> bool:
    """Whether a factor of the scores has an entry for each key."""
    return tensor(factor).rank > 0 and tensor(factor).shape[-1] != 1


def _second(product: fx.Node) -> fx.Node:
    found = operand(product, "other")
    assert isinstance(found, fx.Node)
    return found


def _no_place(node: fx.Node, why: str) -> UtcError:
    return UtcError(f"tokens have no place at {describe(node)}", why=why, fix="exclude the place in `where:`")
