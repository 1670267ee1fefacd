"""How tuners enter a graph, one file for each form of insertion."""

from __future__ import annotations

from typing import assert_never

from utcompile.matching import ChainPlace, Place, TokensPlace, ValuePlace, WeightPlace
from utcompile.matching.forms import StreamTokensPlace
from utcompile.rewrite.forms import chain, stream_tokens, tokens, value, weight
from utcompile.rewrite.writer import Inserted, Writer

__all__ = ["Inserted", "Writer", "insert"]


def insert(writer: Writer, site: Inserted, place: Place) -> None:
    """Add a tuner's nodes at its place."""
    match place:
        case ValuePlace():
            value.insert(writer, site, place)
        case WeightPlace():
            weight.insert(writer, site, place)
        case TokensPlace():
            tokens.insert(writer, site, place)
        case StreamTokensPlace():
            stream_tokens.insert(writer, site, place)
        case ChainPlace():
            chain.insert(writer, site, place)
        case unknown:
            assert_never(unknown)
