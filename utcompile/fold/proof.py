"""Proofs: a site before and after folding on random inputs in float64, and the whole model in its own dtype."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx

from utcompile.fold.absorb import of_parameters
from utcompile.fold.execute import run_node
from utcompile.graph import GraphView, UtcGraphModule, Value, is_state, value_of

_BATCH = 2
_POSITIONS = 16
_ANY_SIZE = frozenset("conv norm activation dropout identity contiguous permute linear mul add".split())


class SiteProof:
    """One site's computation, from what its tuner reads to the value that the tuner changes.

    Everything is computed in float64, whatever the model's dtype. Values that come from elsewhere are random too. A
    feature map of a site that has no sizes written into it is cut to 16 positions a dimension, where convolutions in
    float64 take a hundredth of the time.

    Args:
        view: an index of the graph.
        sources: values that folding leaves alone, from which both the tuner and what stands beside it are computed.
        outputs: the values that are to be compared.
    """

    def __init__(self, view: GraphView, sources: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> None:
        self.root, self.sources = view.module, dict.fromkeys(sources)
        self.given: dict[fx.Node, Any] = {}
        self._generator = torch.Generator().manual_seed(0)
        nodes = dict.fromkeys(n for output in outputs for n in _cone(output, self.sources))
        cut = all(_has_no_sizes(view, source, nodes, self.sources) for source in self.sources)
        for source in self.sources:
            value = value_of(source)
            if value is not None:
                sample = _sample(value, self._generator, _BATCH)
                if cut:
                    sample = sample[(slice(None), slice(None), *[slice(_POSITIONS)] * (sample.dim() - 2))]
                self.given[source] = sample

    def run(self, output: fx.Node) -> torch.Tensor:
        """The value of `output`; the same random inputs in every run."""
        nodes = _cone(output, self.sources)
        known = dict(self.given)
        for node in (i for n in nodes for i in n.all_input_nodes):
            if node not in known and node not in nodes and not is_state(node):
                known[node] = self.given[node] = self._outside(node)
        for node in nodes:
            known[node] = self._compute(node, known)
        parts = [t for t in pytree.tree_leaves(known[output]) if isinstance(t, torch.Tensor)]
        return parts[0] if len(parts) == 1 else torch.cat([t.flatten() for t in parts])  # a recurrent layer has several

    def _outside(self, node: fx.Node) -> Any:
        if "size" in node.meta:
            return node.meta["size"].at(_BATCH)
        if of_parameters(node):  # a weight as its tuner gives it
            return self._compute(node, {})
        value = value_of(node)
        assert value is not None
        return _sample(value, self._generator, _BATCH)

    def _compute(self, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
        def lookup(n: fx.Node) -> Any:
            if n not in known and of_parameters(n):
                known[n] = self._compute(n, known)
            return known[n]

        return run_node(self.root, node, lookup)


def _has_no_sizes(view: GraphView, source: fx.Node, nodes: Collection[fx.Node], sources: Collection[fx.Node]) -> bool:
    """Whether a site computes the same on a feature map of any size."""
    value = value_of(source)
    if value is None or value.rank < 4 or view.channel_axis[source] != 1:
        return False
    inside = {*sources, *nodes}
    return all(
        (view.classes[n] & _ANY_SIZE or n.meta.get("role") in ("tuner", "branch", "sum", "operation", "padding"))
        and all(i in inside or of_parameters(i) for i in n.all_input_nodes)
        for n in nodes
    )


def _cone(output: fx.Node, sources: Collection[fx.Node]) -> list[fx.Node]:
    """The nodes between: computed from the sources, and needed for the output, in graph order."""
    below: set[fx.Node] = {*sources}
    upward: set[fx.Node] = set()
    stack = [output]
    order: list[fx.Node] = []
    started = False
    for node in output.graph.nodes:
        started |= node in sources
        if started and node not in sources and any(i in below for i in node.all_input_nodes):
            below.add(node)
            order.append(node)
        if node is output:
            break
    while stack:
        node = stack.pop()
        if node in upward or node not in below or node in sources:
            continue
        upward.add(node)
        stack.extend(node.all_input_nodes)
    return [n for n in order if n in upward]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest value; infinite where shapes differ or values are not finite."""
    if found.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    error = ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()
    return error if error == error else float("inf")


def model_inputs(module: UtcGraphModule, device: torch.device, batch: int = _BATCH) -> dict[str, Any]:
    """Random inputs of the captured shapes; integer inputs are zeros, which every table has a row for."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Any] = {}
    floating = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    for node in module.graph.nodes:
        value = value_of(node) if node.op == "placeholder" else None
        if value is not None:
            sample = _sample(value, generator, batch).to(device)
            found[str(node.target)] = sample.to(floating) if sample.is_floating_point() else sample
    return found


def _sample(value: Value, generator: torch.Generator, batch: int) -> torch.Tensor:
    if value.dtype.is_floating_point:
        return torch.randn(value.sizes(batch), generator=generator, dtype=torch.float64)
    return torch.zeros(value.sizes(batch), dtype=value.dtype)
