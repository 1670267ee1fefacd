"""The weight matrices that a plan of weight tuners leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import fx

from utcompile.graph import GraphView, ancestors, is_state
from utcompile.graph.stored import stored_in
from utcompile.matching.forms import WeightPlace
from utcompile.matching.quantised import quantised
from utcompile.matching.sites import Site
from utcompile.ops import Trait, having

_PRODUCTS = having(Trait.PRODUCT | Trait.RECURRENT)


def left_out(sites: Sequence[Site], trained: Sequence[str], view: GraphView) -> tuple[str, ...]:
    """The names of the matrices that multiply a value of the graph or a state and are neither tuned nor trained.

    Of an einsum, and of products of stacks, weights with three axes count too. Quantised weights come last. Empty
    where no rule tunes weights, because adapters tune none of them.
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
                if parameter is not None and parameter.dim() in (2, 3) and id(parameter) not in known:
                    found.setdefault(id(parameter), name)
    plain = [n for n in named if n in set(found.values())]
    return tuple(dict.fromkeys((*plain, *_quantised(sites, view))))


def _quantised(sites: Sequence[Site], view: GraphView) -> Iterator[str]:
    """The names of quantised weights without a tuner, also in layers with their own product."""
    tuned = [site for site in sites if isinstance(site.place, WeightPlace) and not any(site.tunes.values())]
    covered = {str(n.target) for site in tuned for target in site.targets for n in stored_in(target)}
    paths = tuple(f"{site.path}." for site in tuned if site.path)
    named = {**view.parameters, **dict(view.module.named_buffers(remove_duplicate=False))}
    for node in view.nodes:
        if node.op == "get_attr":
            names = [str(node.target)]
        elif node.op == "call_module":
            path, layer = str(node.target), view.module.get_submodule(str(node.target))
            names = [f"{path}.{n}" for n in (*dict(layer.named_parameters()), *dict(layer.named_buffers()))]
            if hasattr(layer, "_packed_params") and not path.startswith(paths):  # torch.ao's own storage, no tensor
                yield f"{path}.weight"
        else:
            continue
        yield from (n for n in names if n not in covered and not n.startswith(paths) and _is_quantised(n, named.get(n)))


def _is_quantised(name: str, tensor: torch.Tensor | None) -> bool:
    """Whether a tensor is a quantised matrix; larger integers are indices."""
    if tensor is None or tensor.dim() < 2 or tensor.dtype is torch.bool:
        return False
    return bool(quantised(name, tensor)) and (tensor.dtype.itemsize == 1 or tensor.is_floating_point())


def _read_by(node: fx.Node, view: GraphView) -> list[str]:
    """The parameters that a product reads, directly or through operations on parameters alone."""
    if node.op == "call_module":
        return list(view.operations[node].parameters.values())
    states = ancestors(n for n in node.all_input_nodes if is_state(n))
    return [str(state.target) for state in states if state.op == "get_attr"]
