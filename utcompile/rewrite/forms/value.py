"""Tuners of values.

1. `parallel: x -> y`: `y' = y + T(x)` for all readers of y.
2. `sequential: v`: `v' = T(v)` for all readers of v, or (`for: op`) for one.
"""

from __future__ import annotations

from torch import fx

from utcompile.graph import info
from utcompile.matching import ValuePlace
from utcompile.rewrite.writer import Inserted, Writer


def insert(writer: Writer, site: Inserted, place: ValuePlace) -> None:
    """Add the tuner's nodes for each of the place's values."""
    for target in (writer.mapping[t] for t in place.targets):
        if not place.site.replaces:
            writer.add(site, target, writer.tune(site, (writer.mapping[place.source],), like=target))
        elif place.reader is not None:
            _for_reader(writer, site, target, writer.mapping[place.reader])
        else:
            writer.link(target, writer.tune(site, (writer.value(target),), like=target))


def _for_reader(writer: Writer, site: Inserted, target: fx.Node, reader: fx.Node) -> None:
    given = next((n for n in reader.all_input_nodes if n is target or info(n).instead_of == target.name), target)
    node = writer.tune(site, (given,), like=target)
    info(node).instead_of = target.name
    reader.replace_input_with(given, node)
