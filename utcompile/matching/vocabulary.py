"""Whether a layer reads a vocabulary back: a language model's head, which has the shape of its embedding table."""

from __future__ import annotations

from torch import fx

from utcompile.graph import GraphView

_NEAR = 8  # operations between the tables of words, positions and types and the sum of all


def vocabulary_read_back(node: fx.Node, view: GraphView) -> str | None:
    """The name of the embedding table to which a layer is tied, or whose shape it has; otherwise None.

    Where several tables are summed (words, positions, types), the vocabulary is the largest: a classifier of two
    classes is not taken for the table of two token types.
    """
    named = view.parameters
    weights = [n for n in view.operations[node].parameters.values() if n in named and named[n].dim() == 2]
    for table in _vocabularies(view) if weights else ():
        for name in weights:
            mine, theirs = named[name], named[table]
            if mine is theirs or tuple(mine.shape) in (tuple(theirs.shape), tuple(theirs.shape[::-1])):
                return table
    return None


def _vocabularies(view: GraphView) -> list[str]:
    """The embedding tables, without those that are summed with a larger one."""
    tables = {
        n: name for n in view.by_class.get("embedding", ()) if (name := view.operations[n].parameters.get("weight"))
    }
    named = view.parameters
    rows = {n: len(named[name]) for n, name in tables.items() if name in named}
    sums = {n: _sums_of(n, view) for n in rows}
    return [tables[n] for n in rows if not any(rows[m] > rows[n] and sums[m] & sums[n] for m in rows if m is not n)]


def _sums_of(node: fx.Node, view: GraphView) -> set[fx.Node]:
    """The additions that a table's rows reach through additions, scales, norms and layout."""
    level, found = {node}, set[fx.Node]()
    for _ in range(_NEAR):
        passed = {u for n in level for u in n.users if view.classes[u] & {"add", "mul", "layout", "dropout"}}
        found |= {n for n in passed if "add" in view.classes[n]}
        level = passed
    return found
