"""The index of a captured model, independent of rules and stored with the model for later matches.

The index is made once, and used until one of its sources is replaced: the nodes of the graph, their targets and
arguments, and the layers, parameters and buffers that they name. The settings of a layer (a stride, the mode) count
too. A tensor that is changed in place does not count: the index does not depend on its values.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from torch import fx, nn

from utcompile.graph import GraphView, UtcGraphModule, info
from utcompile.matching.engine import Engine
from utcompile.matching.fitting import Fitting
from utcompile.rules import Pattern

KEPT = "_match_index"  # the module's attribute
_ENGINES = 4  # the number of sets of named patterns whose solutions are kept


@dataclass
class Index:
    """The index of a captured model.

    Attributes:
        view: the graph.
        fitting: the tuners that were tried, by kind of site.
    """

    view: GraphView
    fitting: Fitting = field(default_factory=Fitting)
    _read_from: list[object] = field(default_factory=list, repr=False)
    _engines: dict[tuple[int, ...], Engine] = field(default_factory=dict, repr=False)

    @contextmanager
    def engine(self, library: Mapping[str, Pattern]) -> Iterator[Engine]:
        """An engine that has the solutions of these named patterns from earlier matches.

        It is stored again only if no error ends the match, because a search that was cut short is incomplete.
        """
        key = tuple(
            id(pattern) for pattern in library.values()
        )  # the engine keeps the patterns alive, so that no other object gets their ids
        engine = self._engines.pop(key, None)
        engine = Engine(self.view, library) if engine is None else engine.again()
        yield engine
        while len(self._engines) >= _ENGINES:
            self._engines.pop(next(iter(self._engines)))
        self._engines[key] = engine

    def is_of(self, module: UtcGraphModule) -> bool:
        """Whether the index still describes a module."""
        now = _sources(module)
        return len(now) == len(self._read_from) and all(map(operator.is_, now, self._read_from))

    @cached_property
    def used(self) -> frozenset[fx.Node]:
        """The values on which an output of the model depends, or a write into memory that may be read from there."""
        found: set[fx.Node] = set()
        for node in reversed(self.view.nodes):
            if any(user.op == "output" or user in found or info(user).mutates for user in node.users):
                found.add(node)
        return frozenset(found)


def index_of(module: UtcGraphModule) -> Index:
    """The index of a module; that of an earlier match if none of its sources has changed."""
    known = module.__dict__.get(KEPT)
    if not isinstance(known, Index) or not known.is_of(module):
        known = Index(GraphView(module.graph, module), _read_from=_sources(module))
        module.__dict__[KEPT] = known
    return known


def _sources(module: UtcGraphModule) -> list[object]:
    """The sources of an index, as objects that are identical as long as nothing has changed."""
    found: list[object] = []
    for node in module.graph.nodes:
        found += (node, node.target, node.args, node.kwargs)
    for part in _parts(module):
        found.append(part)
        found += (value for name, value in part.__dict__.items() if name[0] != "_")
        found += part._parameters.values()
        found += part._buffers.values()
    return found


def _parts(module: nn.Module) -> list[nn.Module]:
    """A module and all inside it: `modules()`, without the names that it writes."""
    found, seen = [module], {module}
    for part in found:
        new = [inner for inner in part._modules.values() if inner is not None and inner not in seen]
        found += new
        seen.update(new)
    return found
