"""The places of tuners, one type and one file per form of insertion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from utcompile.matching.forms import chain, stream_tokens, tokens, value, weight
from utcompile.matching.forms.chain import ChainPlace, Earlier
from utcompile.matching.forms.found import Found
from utcompile.matching.forms.placing import Placed
from utcompile.matching.forms.stream_tokens import StreamTokensPlace
from utcompile.matching.forms.tokens import TokensPlace
from utcompile.matching.forms.value import ValuePlace
from utcompile.matching.forms.weight import WeightPlace
from utcompile.rules import ChainInsertion, TokensInsertion, ValueInsertion, WeightInsertion
from utcompile.rules.insertions import StreamTokensInsertion

Place = ValuePlace | WeightPlace | TokensPlace | StreamTokensPlace | ChainPlace

__all__ = [
    "ChainPlace",
    "Earlier",
    "Found",
    "Place",
    "Placed",
    "StreamTokensPlace",
    "TokensPlace",
    "ValuePlace",
    "WeightPlace",
    "placed",
]


def placed(found: Found, before: Sequence[Earlier] = (), is_last: bool = True) -> Placed[Place]:
    """The place of a match in the form that its rule names.

    Args:
        found: the match.
        before: for a stage of a side network, the stages so far.
        is_last: for a stage of a side network, whether it is the last.

    Raises:
        UtcError: the tuner cannot be inserted there.
    """
    match found.rule.insert:
        case ValueInsertion() as insertion:
            return value.place(found, insertion)
        case WeightInsertion() as insertion:
            return weight.place(found, insertion)
        case TokensInsertion() as insertion:
            return tokens.place(found, insertion)
        case StreamTokensInsertion() as insertion:
            return stream_tokens.place(found, insertion)
        case ChainInsertion() as insertion:
            return chain.place(found, insertion, before=before, is_last=is_last)
        case unknown:
            assert_never(unknown)
