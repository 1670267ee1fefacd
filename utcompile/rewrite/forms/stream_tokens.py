"""Learned tokens of a stream: joined with it once; what the graph says of the number of tokens grows with them."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import cast

import torch
from torch import fx
from torch.fx.node import Argument, Target

from utcompile.graph import Role, Size, Value, info, inserted, origin_of, tensor
from utcompile.matching.forms.stream_tokens import Resized, StreamTokensPlace, sizes_of
from utcompile.rewrite.tokens import plus
from utcompile.rewrite.writer import Inserted, Writer
from utcompile.tuners import HALVES


def insert(writer: Writer, site: Inserted, place: StreamTokensPlace) -> None:
    """Put the tuner's tokens between the first tokens of the stream and the others, for all readers of the stream."""
    stream, length = writer.mapping[place.source], site.tuner.length
    before = writer.value(stream)
    value = tensor(before)
    learned = replace(value, shape=(1, length, value.shape[-1]), storage=-1)
    last = before

    def call(role: Role, what: Target, args: tuple[Argument, ...], made: Value | None) -> fx.Node:
        nonlocal last
        with writer.graph.inserting_after(writer.after_inputs(last)):
            if isinstance(what, str):
                last = writer.graph.call_method(what, args)
            else:
                last = writer.graph.call_function(what, args)
        writer.running.add((last, before))  # it reads the stream without the tokens
        return inserted(last, origin_of(stream), value=made, role=role, site=site.id)

    tokens = last = writer.tune(site, (), like=stream, after=before)
    info(tokens).value = learned
    if value.dtype in HALVES:  # the tokens may be in float32
        tokens = call(Role.PART, "type_as", (tokens, before), learned)
    batch = call(Role.PART, "size", (before, 0), None)
    whole = replace(learned, shape=(value.shape[0], *learned.shape[1:]))
    parts = [call(Role.PART, "expand", (tokens, batch, -1, -1), whole)]
    if place.at is None:
        parts = [before, *parts]
    else:
        first, others = (
            call(Role.PART, operator.getitem, (before, (slice(None), part)), _of_tokens(value, count))
            for part, count in (
                (slice(None, place.at), place.at),
                (slice(place.at, None), plus(value.shape[1], -place.at)),
            )
        )
        parts = [first, *parts, others]
    joined = call(Role.OPERATION, torch.cat, (parts, 1), _longer(value, frozenset([1]), length))
    writer.link(stream, joined)
    for resized in place.resized:
        _resize(writer, site, resized, length)
    for recorded, axes in place.carried.items():
        if recorded is not place.source:
            node = writer.mapping[recorded]
            info(node).value = _longer(tensor(node), axes, length)


def _resize(writer: Writer, site: Inserted, resized: Resized, length: int) -> None:
    """Let a size that a reshape states grow; one that the model has read is read again where it is needed."""
    node = writer.mapping[resized.node]
    sizes = [cast("Argument", size) for size in sizes_of(node) or ()]
    size = sizes[resized.at]
    if isinstance(size, int):
        sizes[resized.at] = size + length
    else:
        with writer.graph.inserting_before(node):
            read = writer.graph.call_method("size", (node.args[0], resized.of))
        sizes[resized.at] = inserted(read, origin_of(node), role=Role.PART, site=site.id)
    node.args = (node.args[0], *sizes) if node.op == "call_method" else (node.args[0], tuple(sizes))
    node.kwargs = {}


def _of_tokens(value: Value, count: int | Size) -> Value:
    return replace(value, shape=(value.shape[0], count, *value.shape[2:]))


def _longer(value: Value, axes: frozenset[int], length: int) -> Value:
    shape = tuple(plus(size, length) if axis in axes else size for axis, size in enumerate(value.shape))
    return replace(value, shape=shape)
