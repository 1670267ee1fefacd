"""Learned keys and values before those of an attention; see `rewrite/tokens.py`."""

from __future__ import annotations

from utcompile.matching import TokensPlace
from utcompile.rewrite.tokens import TokensWriter
from utcompile.rewrite.writer import Inserted, Writer


def insert(writer: Writer, site: Inserted, place: TokensPlace) -> None:
    """Add the tokens; where attention is spelled out, their share is added to its result."""
    tokens = TokensWriter(writer.graph, writer.mapping, place, site)
    added = tokens.write()
    if added is not None:
        writer.add(site, tokens.node, added)
