"""`tokens: [k, v]`: learned keys and values before those of an attention.

1. *Fused*: `sdpa(q, k, v, mask)` becomes `sdpa(q, [K_p; k], [V_p; v], [0; mask])`. Every query sees the whole prefix: a
   boolean mask is extended by True, an additive one by 0, and `is_causal=True`, which with a prefix would mean another
   mask, becomes `[True; tril]`.
2. *Spelled out*: `softmax(s)·v` becomes `p, w = split(softmax([s_p; s])); w·v + p·V_p`, where `s_p = scale(q·K_pᵀ)`.
   The masks, biases and windows between the scores and softmax stay as they are.
3. Tokens of the stream (prompts) become keys and values by copies of the frozen norm and projections, which share their
   modules with the originals.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import cast

import torch
import torch.nn.functional as F
from torch import fx
from torch.fx.node import Argument, Target

from utcompile.errors import UtcError
from utcompile.graph import Role, Size, Value, fused_arguments, info, inserted, is_state, tensor, value_of
from utcompile.matching import TokensPlace
from utcompile.rewrite.writer import Inserted
from utcompile.tuners import HALVES

_INDICES = ("key_index", "value_index")


class TokensWriter:
    """Writes one site's learned tokens into a graph.

    Args:
        graph: the graph that is rewritten.
        mapping: a recorded node -> its copy in the graph.
        place: the attention.
        site: the tuner.
    """

    def __init__(self, graph: fx.Graph, mapping: Mapping[fx.Node, fx.Node], place: TokensPlace, site: Inserted) -> None:
        self.graph, self.mapping = graph, mapping
        self.site, self.name, self.tuner = site, site.name, site.tuner
        self.attention, self.projection = place.attention, place.projection
        self.node = mapping[self.attention.node]

    def write(self) -> fx.Node | None:
        """Insert the tokens; where attention is spelled out, the value that is to be added to its result."""
        with self.graph.inserting_before(self.node):
            keys, values = self._from_stream() if self.projection is not None else self._from_tuner()
            if self.attention.softmax is None:
                self._fused(keys, values)
                return None
        return self._spelled_out(keys, values)

    # --- the learned keys and values ------------------------------------------------------------------------------

    def _from_tuner(self) -> tuple[fx.Node, fx.Node]:
        k, v = (self.mapping[n] for n in (self.attention.key, self.attention.value))
        pair = self._call_module(Role.TUNER, self.name, (k, v), None)
        keys, values = (self._call(Role.PART, operator.getitem, (pair, i), self._learned(i)) for i in (0, 1))
        return keys, values

    def _learned(self, part: int) -> Value:
        """The shape of the learned keys (0) or values (1)."""
        whole = self.attention.keys if part == 0 else tensor(self.attention.value)
        return replace(whole, shape=(*whole.shape[:-2], self.tuner.length, whole.shape[-1]), storage=-1)

    def _from_stream(self) -> tuple[fx.Node, fx.Node]:
        assert self.projection is not None
        way = self.projection
        for name, index in zip(_INDICES, (way.key_index, way.value_index), strict=True):
            device = next(self.tuner.parameters()).device
            self.tuner.register_buffer(name, torch.tensor(index, device=device), persistent=False)
        stream = tensor(way.stream)
        tokens: fx.Node = self._call_module(
            Role.TUNER, self.name, (), replace(stream, shape=(1, self.tuner.length, stream.shape[-1]), storage=-1)
        )
        if stream.dtype in HALVES:  # the prompts may be in float32, and the projections are not
            self.tuner.register_buffer("like", torch.empty(0, dtype=stream.dtype, device=device), persistent=False)
            like = self.graph.get_attr(f"{self.name}.like")
            inserted(like, info(self.node).origin, state=True)
            tokens = self._call(Role.PART, "type_as", (tokens, like), tensor(tokens))
        if way.norm is not None:
            tokens = self._again(way.norm, tokens)
        made: dict[fx.Node, fx.Node] = {}
        found = []
        for part, (linear, operand) in enumerate(((way.key, self.attention.key), (way.value, self.attention.value))):
            if linear not in made:
                made[linear] = self._again(linear, tokens)
            channels = self.graph.get_attr(f"{self.name}.{_INDICES[part]}")
            inserted(channels, info(self.node).origin, state=True)
            heads = self._call(Role.PART, operator.getitem, (made[linear], (slice(None), slice(None), channels)), None)
            heads = self._call(Role.PART, "transpose", (heads, 1, 2), None)  # (1, heads, length, d)
            batch = self._call(Role.PART, "size", (self.mapping[operand], 0), None)
            found.append(self._call(Role.PART, "expand", (heads, batch, -1, -1, -1), self._learned(part)))
        return found[0], found[1]

    def _again(self, recorded: fx.Node, source: fx.Node) -> fx.Node:
        """A frozen operation once more, on the prompts."""
        original = self.mapping[recorded]
        read = self.mapping[_data(recorded)]
        found = self.graph.node_copy(original, lambda n: source if n is read else n)
        shape = (*tensor(source).shape[:-1], tensor(recorded).shape[-1])
        found.meta = {}
        value = replace(tensor(recorded), shape=shape, storage=-1)
        inserted(found, info(original).origin, value=value, role=Role.PROJECTION, site=self.site.id)
        return found

    # --- fused --------------------------------------------------------------------------------------------------------

    def _fused(self, keys: fx.Node, values: fx.Node) -> None:
        given = fused_arguments(self.node)
        mask = self._mask(given)
        key, value = (
            self._call(Role.OPERATION, torch.cat, ((learned, given[name]), -2), self._longer(tensor(given[name]), -2))
            for name, learned in (("key", keys), ("value", values))
        )
        if mask is not None and given["enable_gqa"] is True:  # no fused CUDA kernel takes a mask and shared keys
            heads, own = tensor(given["query"]).shape[-3], tensor(given["key"]).shape[-3]
            if isinstance(heads, int) and isinstance(own, int):
                key, value = (self._repeated(n, heads // own) for n in (key, value))
                given["enable_gqa"] = False
        rest = {k: v for k, v in given.items() if k not in ("query", "key", "value", "attn_mask", "is_causal")}
        plain = {"dropout_p": 0.0, "scale": None, "enable_gqa": False}
        self.node.args = (given["query"], key, value)
        self.node.kwargs = {
            **({} if mask is None else {"attn_mask": mask}),
            **{k: v for k, v in rest.items() if v != plain[k]},
        }

    def _repeated(self, node: fx.Node, repeats: int) -> fx.Node:
        """Keys or values once for each head of queries."""
        *batch, heads, length, channels = tensor(node).shape
        assert isinstance(heads, int)
        value = replace(tensor(node), shape=(*batch, heads * repeats, length, channels), storage=-1)
        return self._call(Role.OPERATION, "repeat_interleave", (node, repeats, -3), value)

    def _mask(self, given: Mapping[str, Argument]) -> fx.Node | None:
        mask, key, query = given["attn_mask"], given["key"], given["query"]
        assert isinstance(key, fx.Node) and isinstance(query, fx.Node)
        if mask is None and not given["is_causal"]:
            return None
        if mask is None:
            lengths = tuple(self._call(Role.MASK, "size", (n, -2), None) for n in (query, key))
            value = replace(tensor(key), shape=(tensor(query).shape[-2], tensor(key).shape[-2]), dtype=torch.bool)
            ones = self._call(Role.MASK, "new_ones", (key, lengths), value, {"dtype": torch.bool})
            mask = self._call(Role.MASK, torch.tril, (ones,), value)
        elif not isinstance(mask, fx.Node) or value_of(mask) is None:
            raise UtcError(f"the mask of the attention at site {self.site.id} is no tensor of the graph")
        elif tensor(mask).shape[-1] == 1:  # one entry for all keys
            length = self._call(Role.MASK, "size", (key, -2), None)
            value = replace(tensor(mask), shape=(*tensor(mask).shape[:-1], tensor(key).shape[-2]))
            mask = self._call(Role.MASK, "expand", (mask, *[-1] * (tensor(mask).rank - 1), length), value)
        seen: dict[str, Argument] = {"value": True if tensor(mask).dtype == torch.bool else 0.0}
        longer = self._longer(tensor(mask), -1)
        return self._call(Role.MASK, F.pad, (mask, (self.tuner.length, 0)), longer, seen)

    # --- spelled out --------------------------------------------------------------------------------------------------

    def _spelled_out(self, keys: fx.Node, values: fx.Node) -> fx.Node:
        place, length = self.attention, self.tuner.length
        assert place.softmax is not None and place.weights is not None
        query, softmax, weights = (self.mapping[n] for n in (place.query, place.softmax, place.weights))
        scores = _data(softmax)
        value = tensor(scores)
        part = replace(value, shape=(*value.shape[:-1], length), storage=-1)
        with self.graph.inserting_before(self.node):
            turned = self._call(Role.OPERATION, "transpose", (keys, -1, -2), None)
            learned = self._call(Role.OPERATION, torch.matmul, (query, turned), part)
            for scale in place.scales:
                learned = self._scaled(self.mapping[scale], learned, part)
            joined = self._call(Role.OPERATION, torch.cat, ((learned, scores), -1), self._longer(value, -1))
            softmax.replace_input_with(scores, joined)
            for node in _between(softmax, weights):
                info(node).value = self._longer(tensor(node), -1)
            readers = list(weights.users)
            mine, others = (
                self._call(Role.OPERATION, operator.getitem, (weights, cast("Argument", (..., keys))), made)
                for keys, made in ((slice(None, length), part), (slice(length, None), value))
            )
            for reader in readers:
                reader.replace_input_with(weights, others)
            return self._call(Role.OPERATION, torch.matmul, (mine, values), tensor(self.node))

    def _scaled(self, scale: fx.Node, learned: fx.Node, value: Value) -> fx.Node:
        """A factor of the scores, on the learned ones."""
        read = _data(scale)
        node = self.graph.node_copy(scale, lambda n: learned if n is read else n)
        node.meta = {}
        inserted(node, info(self.node).origin, value=value, role=Role.OPERATION, site=self.site.id)
        return node

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _longer(self, value: Value, axis: int) -> Value:
        """A value's shape with the learned tokens on one axis."""
        shape = list(value.shape)
        shape[axis] = plus(shape[axis], self.tuner.length)
        return replace(value, shape=tuple(shape), storage=-1)

    def _call_module(self, role: Role, target: str, args: tuple[Argument, ...], value: Value | None) -> fx.Node:
        return self._noted(self.graph.call_module(target, args), role, value)

    def _call(
        self,
        role: Role,
        target: Target,
        args: tuple[Argument, ...],
        value: Value | None,
        kwargs: dict[str, Argument] | None = None,
    ) -> fx.Node:
        if isinstance(target, str):
            return self._noted(self.graph.call_method(target, args, kwargs), role, value)
        return self._noted(self.graph.call_function(target, args, kwargs), role, value)

    def _noted(self, node: fx.Node, role: Role, value: Value | None) -> fx.Node:
        inserted(node, info(self.node).origin, role=role, site=self.site.id)
        if value is not None:
            info(node).value = value
        return node


def _data(node: fx.Node) -> fx.Node:
    """The one tensor that a node reads besides parameters."""
    return next(n for n in node.all_input_nodes if value_of(n) is not None and not is_state(n))


def _between(softmax: fx.Node, weights: fx.Node) -> list[fx.Node]:
    """The nodes from softmax to the weights, both included."""
    found = [weights]
    while found[-1] is not softmax:
        found.append(_data(found[-1]))
    return found


def plus(size: int | Size, length: int) -> int | Size:
    """A size with so many more."""
    if isinstance(size, int):
        return size + length
    terms = dict(size.terms)
    terms[()] = terms.get((), Fraction(0)) + length
    return Size(tuple((symbols, factor) for symbols, factor in terms.items() if factor))
