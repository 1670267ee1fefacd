"""The subjects of folds: a tuner in place, or a part of the base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import assert_never

from torch import fx, nn

from utcompile.graph import Role, info
from utcompile.rewrite import (
    Tuned,
    TunedSite,
    TunedStage,
    TunedStreamTokens,
    TunedTokens,
    TunedValue,
    TunedWeight,
    site_nodes,
)
from utcompile.tuners import Bottleneck, ChannelMap, Tuner

_CHANGED = {Role.SUM: 0, Role.BRANCH: 1}  # which argument is the value that the tuner's share is added to


@dataclass(frozen=True)
class Site:
    """A tuner in place.

    Attributes:
        tuned: where it is, and what it tunes.
        tuner: its module.
        nodes: the nodes that rewriting made for it, by role.
    """

    tuned: TunedSite
    tuner: Tuner
    nodes: Mapping[Role, list[fx.Node]]

    @classmethod
    def of(cls, tuned: TunedSite, graph: fx.Graph, root: nn.Module) -> Site:
        """A tuner in a graph and the module that the graph's targets name."""
        tuner = root.get_submodule(tuned.name)
        assert isinstance(tuner, Tuner)
        return cls(tuned, tuner, site_nodes(graph, tuned.id))

    @property
    def id(self) -> str:
        """The site's name in reports."""
        return self.tuned.id

    @property
    def place(self) -> Tuned:
        """How the tuner is inserted, and what it tunes."""
        return self.tuned.place

    @property
    def kind(self) -> str:
        """The form and the kind of the tuner: `parallel adapter`."""
        return f"{self.tuned.form} {self.tuned.tuner}"

    @property
    def call(self) -> fx.Node:
        """The node that calls the tuner, where there is one."""
        (node,) = self.nodes[Role.TUNER]
        return node

    @property
    def source(self) -> fx.Node:
        """The value that the tuner reads first."""
        node = self.call.args[0]
        assert isinstance(node, fx.Node)
        return node

    @property
    def total(self) -> fx.Node | None:
        """The sum of what the tuner yields and the value next to it, of a parallel tuner."""
        return next(iter(self.nodes.get(Role.SUM, ())), None)

    @cached_property
    def linear(self) -> ChannelMap | None:
        """What a tuner of values computes, where it is one linear map of channels."""
        return self.tuner.channel_map() if isinstance(self.place, TunedValue) else None

    @cached_property
    def bottleneck(self) -> Bottleneck | None:
        """What a parallel tuner computes, where it is a bottleneck."""
        is_added = isinstance(self.place, TunedValue) and not self.place.replaces
        return self.tuner.bottleneck() if is_added else None


def is_first(tuned: TunedSite) -> bool:
    """Whether a site is folded before the others: a widening needs layers whose weights are plain again."""
    match tuned.place:
        case TunedWeight():
            return True
        case TunedValue() | TunedTokens() | TunedStreamTokens() | TunedStage():
            return False
        case unknown:
            assert_never(unknown)


@dataclass(frozen=True)
class Part:
    """A node of the base that may be folded, and its name in reports."""

    id: str
    node: fx.Node


def untuned(node: fx.Node) -> fx.Node | None:
    """The value that a tuner's share is added to, of the node that adds it; None of any other node."""
    place = _CHANGED.get(info(node).role or Role.TUNER)
    if place is None:
        return None
    found = node.args[place]
    assert isinstance(found, fx.Node)
    return found
