"""What is known of a captured model before any rule is read, kept with the model for the matches that follow.

The index is made once and used as long as nothing that it was read from is replaced: the graph's nodes, their targets
and arguments, and the layers, parameters and buffers that they name. A layer's own settings (a stride, the mode) count
too. Tensors that are changed in place do not: nothing of the index depends on their numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from utcompile.graph import GraphView, UtcGraphModule
from utcompile.matching.engine import Engine
from utcompile.matching.fitting import Fitting
from utcompile.rules import Pattern

KEPT = "_match_index"  # the module's attribute
_NOTHING = object()
_ENGINES = 4  # sets of named patterns whose solutions are kept


@dataclass
class Index:
    """A captured model as it is matched.

    Attributes:
        view: the graph.
        fitting: which tuners fit which kinds of sites.
    """

    view: GraphView
    fitting: Fitting = field(default_factory=Fitting)
    _read_from: list[Any] = field(default_factory=list, repr=False)
    _engines: dict[tuple[int, ...], Engine] = field(default_factory=dict, repr=False)

    @contextmanager
    def engine(self, library: Mapping[str, Pattern]) -> Iterator[Engine]:
        """An engine that knows what it found of these named patterns in earlier matches.

        It is put back only where no error ends the match: a search that broke off must not look like a whole one.
        """
        key = tuple(id(pattern) for pattern in library.values())  # the engine keeps them, so that ids stay theirs
        engine = self._engines.pop(key, None)
        engine = Engine(self.view, library) if engine is None else engine.again()
        yield engine
        while len(self._engines) >= _ENGINES:
            self._engines.pop(next(iter(self._engines)))
        self._engines[key] = engine

    def is_of(self, module: UtcGraphModule) -> bool:
        """Whether the index still describes a module."""
        pairs = zip_longest(self._read_from, _sources(module), fillvalue=_NOTHING)
        return all(a is b for a, b in pairs)


def index_of(module: UtcGraphModule) -> Index:
    """The module's index: the one that an earlier match made, where nothing that it was read from has changed."""
    known = module.__dict__.get(KEPT)
    if not isinstance(known, Index) or not known.is_of(module):
        known = Index(GraphView(module.graph, module), _read_from=list(_sources(module)))
        module.__dict__[KEPT] = known
    return known


def _sources(module: UtcGraphModule) -> Iterator[Any]:
    """Everything that an index is read from, as objects that are the same as long as nothing has changed."""
    for node in module.graph.nodes:
        yield node
        yield node.target
        yield node.args
        yield node.kwargs
    for part in module.modules():
        yield part
        yield from (value for name, value in part.__dict__.items() if not name.startswith("_"))
        yield from part._parameters.values()
        yield from part._buffers.values()
