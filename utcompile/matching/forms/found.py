"""One match of a rule, from which the `place` of a form makes a site; and the checks that several forms share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from utcompile.errors import UtcError
from utcompile.graph import GraphView, Operation, describe, value_of
from utcompile.matching.engine import Bindings
from utcompile.matching.fitting import Fitting
from utcompile.matching.grid import grid_of
from utcompile.matching.heads import has_windows
from utcompile.matching.parameters import channel_axis_of
from utcompile.rules import Rule
from utcompile.tuners import Port, Tuner, TunerConfig, tuner_class


@dataclass(frozen=True, kw_only=True)
class Found:
    """One match of a rule.

    Attributes:
        rule: the rule.
        path: the path of the module whose call encloses the match.
        env: the captures.
        view: the graph.
        fitting: the tuners that were tried, by kind of site.
    """

    rule: Rule
    path: str
    env: Bindings
    view: GraphView
    fitting: Fitting

    @property
    def config(self) -> TunerConfig:
        """The tuner's config in the rule."""
        return self.rule.insert.tuner.config

    @property
    def tuner(self) -> type[Tuner]:
        """The tuner's class."""
        return tuner_class(self.config.kind)

    @property
    def captures(self) -> dict[str, Operation]:
        """The operations of the match by name."""
        return {k: self.view.operations[self.view.without_layout(n)] for k, n in self.env.items()}

    def port(self, name: str, node: fx.Node) -> Port:
        """A value as a tuner sees it.

        Args:
            name: the capture's name, for messages.
            node: the value.
        """
        value = value_of(node)
        if node.op == "get_attr" and value is not None:
            return Port(value, channel_axis_of(node, self.view), name)
        if value is None:
            raise UtcError(f"'{name}' is not a single tensor", fix="name a capture of one tensor", code="match/place")
        grid = grid_of(node, self.view) if value.rank == 3 else None
        return Port(value, self.view.channel_axis[node], name, grid, has_windows(node, self.view))

    def check_real(self, values: Sequence[fx.Node]) -> None:
        """Refuse a tuner of real numbers where a value is complex, or has integers or truth values."""
        for node in values:
            value = value_of(node)
            if value is not None and value.dtype.is_complex:
                raise no_complex(self.config.kind, "the value", str(value.dtype))
            if value is not None and not value.dtype.is_floating_point:
                raise UtcError(
                    f"a {self.config.kind} tuner computes with real numbers, and {node.name} is "
                    f"{str(value.dtype).removeprefix('torch.')}",
                    fix="tune a value of floating-point numbers near it, or exclude the place in `where:`",
                    code="match/place",
                )

    def check_unwritten(self, nodes: Sequence[fx.Node]) -> None:
        """Refuse a value whose memory is overwritten later."""
        for node in nodes:
            value = value_of(node)
            for write in self.view.mutations.get(value.storage, ()) if value is not None else ():
                if self.view.position[write] > self.view.position[node]:
                    raise UtcError(
                        f"the memory of {node.name} is overwritten in place later",
                        why=f"by {describe(write)}",
                        fix="choose another capture, or exclude the place in `where:`",
                        code="match/place",
                    )


def no_complex(kind: str, what: str, dtype: str) -> UtcError:
    """The refusal of complex numbers."""
    return UtcError(
        f"a {kind} tuner computes with real numbers, and {what} is {dtype.removeprefix('torch.')}",
        fix="tune a complex weight with {kind: lora}, which then has complex factors; or tune a real value near it",
        code="match/place",
    )
