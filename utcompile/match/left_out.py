"""The weight matrices that a plan of weight tuners leaves out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from utcompile.graph import GraphView, ancestors, is_state
from utcompile.match.forms import WeightPlace
from utcompile.match.sites import Site
from utcompile.ops import Trait, having

_PRODUCTS = having(Trait.PRODUCT)


def left_out(sites: Sequence[Site], trained: Sequence[str], view: GraphView) -> tuple[str, ...]:
    """The names of the matrices that multiply a value of the graph, and are neither tuned nor trained.

    Nothing where no rule tunes weights: adapters leave out all of them.
    """
    if not any(isinstance(site.place, WeightPlace) for site in sites):
        return ()
    named = view.parameters
    known = {id(named[n]) for n in trained} | {
        id(named[n]) for site in sites for n in site.tunes.values() if n is not None and n in named
    }
    found: dict[int, str] = {}
    for word in _PRODUCTS:
        for node in view.by_class.get(word, ()):
            for name in _read_by(node, view):
                parameter = named.get(name)
                if parameter is not None and parameter.dim() == 2 and id(parameter) not in known:
                    found.setdefault(id(parameter), name)
    return tuple(n for n in named if n in set(found.values()))


def _read_by(node: fx.Node, view: GraphView) -> list[str]:
    """The parameters that a product reads, itself or through what is computed from them alone."""
    if node.op == "call_module":
        return list(view.operations[node].parameters.values())
    states = ancestors(n for n in node.all_input_nodes if is_state(n))
    return [str(state.target) for state in states if state.op == "get_attr"]
