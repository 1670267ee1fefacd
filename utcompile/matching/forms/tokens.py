"""`tokens: [k, v]`: learned keys and values of an attention."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import fx

from utcompile.graph import Value, tensor
from utcompile.matching.forms.found import Found
from utcompile.matching.forms.placing import Placed, TunerPlace
from utcompile.matching.projection import Projection, projection_of
from utcompile.matching.tokens import Attention, attention_of, tokens_site
from utcompile.rules import TokensInsertion
from utcompile.tuners import TokensSite


@dataclass(frozen=True, kw_only=True)
class TokensPlace(TunerPlace):
    """The place of learned keys and values.

    Attributes:
        site: the site as the tuner's `build` sees it.
        attention: the operation whose keys and values the tokens join.
        projection: for a tuner of tokens of the stream, the way from the stream to keys and values; otherwise None.
    """

    site: TokensSite = field(compare=False)
    attention: Attention = field(compare=False)
    projection: Projection | None = field(default=None, compare=False)

    @property
    def source(self) -> fx.Node:
        """The keys."""
        return self.attention.key

    @property
    def targets(self) -> tuple[fx.Node, ...]:
        """The values."""
        return (self.attention.value,)

    @property
    def given(self) -> tuple[Value, ...]:
        """The inputs of the tuner's `forward`: keys and values, or none."""
        return () if self.projection is not None else (self.site.source.value, self.site.target.value)


def place(found: Found, insertion: TokensInsertion) -> Placed[TokensPlace]:
    """Check that learned tokens can join the keys and values of a match.

    Raises:
        UtcError: they cannot; the caller adds `where`.
    """
    view = found.view
    attention = attention_of(insertion, found.env, view)
    site = tokens_site(insertion, attention, captures=found.captures, view=view)
    nodes = (attention.key, attention.value)
    found.check_real(nodes)
    projection = None
    if found.tuner.reads_stream:
        projection = projection_of(attention, view)
        site = replace(site, source=found.port("the stream", projection.stream))
    fitted = found.fitting.fit(found.config, site)
    found.check_unwritten(nodes)
    return Placed(
        place=TokensPlace(site=site, attention=attention, projection=projection),
        config=found.config,
        parameters=fitted.parameters,
        reads=tensor(attention.key),
        writes=site.target.value,
    )
