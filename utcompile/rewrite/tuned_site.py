"""A tuner in place: what is known of a site once the captured graph's nodes are gone, one type for each form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, assert_never

from utcompile.matching import ChainPlace, Place, TokensPlace, ValuePlace, WeightPlace
from utcompile.matching.forms import StreamTokensPlace
from utcompile.tuners import Form, TunerConfig


@dataclass(frozen=True)
class TunedValue:
    """`parallel: x -> y` or `sequential: v`: whether the tuner's result replaces the value, or is added to it."""

    replaces: bool

    @property
    def form(self) -> Form:
        """`sequential` or `parallel`."""
        return "sequential" if self.replaces else "parallel"


@dataclass(frozen=True)
class TunedWeight:
    """`weight: h`.

    Attributes:
        how: whether the tuner adds to the operation's result, or makes its parameters.
        tunes: role to the name of the parameter that the tuner changes; None for one that it adds.
    """

    how: Literal["branch", "reparametrised"]
    tunes: Mapping[str, str | None]
    form: Form = "weight"

    @property
    def names(self) -> list[str]:
        """The names of the parameters that the tuner changes."""
        return [name for name in self.tunes.values() if name is not None]


@dataclass(frozen=True)
class TunedTokens:
    """`tokens: [k, v]`."""

    form: Form = "tokens"


@dataclass(frozen=True)
class TunedStreamTokens:
    """`stream_tokens: x`."""

    form: Form = "stream_tokens"


@dataclass(frozen=True)
class TunedStage:
    """One stage of `chain: v -> z`."""

    form: Form = "chain"


Tuned = TunedValue | TunedWeight | TunedTokens | TunedStreamTokens | TunedStage


def tuned_of(place: Place) -> Tuned:
    """What of a place stays true in a tuned model."""
    match place:
        case ValuePlace():
            return TunedValue(place.site.replaces)
        case WeightPlace():
            return TunedWeight(place.how, dict(place.tunes))
        case TokensPlace():
            return TunedTokens()
        case StreamTokensPlace():
            return TunedStreamTokens()
        case ChainPlace():
            return TunedStage()
        case unknown:
            assert_never(unknown)


@dataclass(frozen=True, kw_only=True)
class TunedSite:
    """A tuner in place.

    Attributes:
        id: rule name, module path and ordinal.
        rule: the rule's name.
        path: the module whose call encloses the match.
        tuner: the tuner's kind.
        name: the tuner's module in the tuned model, `tuners.mha_blocks_0_0`.
        config: the tuner's config.
        place: what it tunes, by the form of insertion.
    """

    id: str
    rule: str
    path: str
    tuner: str
    name: str
    config: TunerConfig
    place: Tuned

    @property
    def form(self) -> Form:
        """The form's word in rule files."""
        return self.place.form

    @property
    def how(self) -> str | None:
        """Of a weight tuner, `branch` or `reparametrised`."""
        return self.place.how if isinstance(self.place, TunedWeight) else None

    @property
    def tunes(self) -> Mapping[str, str | None]:
        """Of a weight tuner, role to the name of the parameter it changes; None for one that it adds."""
        return self.place.tunes if isinstance(self.place, TunedWeight) else {}
