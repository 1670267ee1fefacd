"""The content of a rule file as plain frozen data, shared by the matcher, the rewriter and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from utcompile.rules.globs import glob_match
from utcompile.rules.insertions import AnyInsertion
from utcompile.rules.syntax import Comparison, Head, Mark, Pattern
from utcompile.rules.variables import Value

__all__ = [
    "Expect",
    "ExpectedSites",
    "Match",
    "MatchModule",
    "MatchOperation",
    "MatchParameter",
    "MatchPattern",
    "Rule",
    "RuleTest",
    "Scope",
    "Select",
    "Train",
    "glob_match",
]


@dataclass(frozen=True)
class MatchPattern:
    """`match: attention`, or pattern text in place."""

    pattern: Pattern

    @property
    def captures(self) -> frozenset[str]:
        """The names that every spelling of the pattern binds."""
        return self.pattern.names


@dataclass(frozen=True)
class MatchModule:
    """`match: {module: "blocks.*", class: Mlp}`: one site per call, from its first tensor input to its first output."""

    module: str | None = None
    cls: str | None = None

    @property
    def captures(self) -> frozenset[str]:
        """`x`, the first tensor input, and `y`, the first tensor output."""
        return frozenset("xy")


@dataclass(frozen=True)
class MatchOperation:
    """`match: {op: "conv2d(groups=1) | linear"}`: any one of these operations."""

    heads: tuple[Head, ...]

    @property
    def captures(self) -> frozenset[str]:
        """`x`, the operation's input, and `h`, its value."""
        return frozenset("xh")


@dataclass(frozen=True)
class MatchParameter:
    """`match: {parameter: "**.pos_embed"}`: a parameter that no module owns."""

    parameter: str

    @property
    def captures(self) -> frozenset[str]:
        """`h`, the parameter."""
        return frozenset("h")


Match = MatchPattern | MatchModule | MatchOperation | MatchParameter


@dataclass(frozen=True)
class Scope:
    """`{module: "stages.2.**", class: Block}`: globs of one enclosing call, which must match both."""

    module: str | None = None
    cls: str | None = None


@dataclass(frozen=True)
class Select:
    """Which matches are taken, in graph order: at most one of `first`, `last` and `indices`; then every n-th."""

    first: int | None = None
    last: int | None = None
    every: int | None = None
    indices: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Expect:
    """How many sites a rule must have after `select`; `optional` allows none."""

    at_least: int = 1
    exactly: int | None = None
    at_most: int | None = None
    optional: bool = False


@dataclass(frozen=True)
class Rule:
    """One rule: the pattern that it matches, the matches that it takes, and the tuner that it inserts."""

    name: str
    mark: Mark
    match: Match
    where: tuple[Comparison, ...]
    inside: tuple[Scope, ...]  # all of them enclose the match
    not_inside: tuple[Scope, ...]  # none of them does
    exclude: tuple[str, ...]  # `except:`, named patterns; a target that one of their matches covers is left out
    select: Select
    insert: AnyInsertion
    expect: Expect
    skips: bool = False  # `on_refusal: skip`: a site that refuses the tuner is skipped


@dataclass(frozen=True)
class Train:
    """`pattern:head`, `module:head.*` or `parameter:**.bias`: what is trained in addition to the tuners.

    `untied:lm_head.weight` trains a parameter apart from those that it is tied to.
    """

    kind: Literal["pattern", "module", "parameter", "untied"]
    glob: str  # for `pattern`, its name
    mark: Mark


# The number of a rule's sites in a model; or numbers by glob of their paths (None for one or more), and none elsewhere.
ExpectedSites = int | Mapping[str, int | None]


@dataclass(frozen=True)
class RuleTest:
    """A model, and the sites that each rule must find in it."""

    model: str
    sites: Mapping[str, ExpectedSites]
    vars: Mapping[str, Value] = field(default_factory=dict)
