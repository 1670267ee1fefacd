"""Proofs: a site before and after folding on random inputs in float64, and the whole model in its own dtype."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx

from utcompile.fold.absorb import of_parameters
from utcompile.fold.execute import run_node
from utcompile.fold.layers import Work
from utcompile.graph import GraphView, UtcGraphModule, Value, is_state, value_of

_BATCH = 2
_POSITIONS = 16  # of a feature map: borders and what is no border, of most kernels
_VECTORS = 4  # where no position is computed from another
_ANY_SIZE = frozenset("conv norm activation dropout identity contiguous permute linear mul add".split())


class SiteProof:
    """One site's computation, from what its tuner reads to the value that the tuner changes.

    Everything is computed in float64, whatever the model's dtype. Values that come from elsewhere are random too. A
    site that has no sizes written into it computes at every position alike, so a few positions an axis prove it; with
    all of them, convolutions in float64 would take a hundred times as long.

    Args:
        work: the model being folded, before this site is.
        sources: values that folding leaves alone, from which both the tuner and what stands beside it are computed.
        outputs: the values that are to be compared.
    """

    def __init__(self, work: Work, sources: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> None:
        self.work, self.sources = work, dict.fromkeys(sources)
        self._generator = torch.Generator().manual_seed(0)
        nodes = dict.fromkeys(n for output in outputs for n in _cone(output, self.sources))
        positions = _positions_needed(work.view(), self.sources, nodes)
        self.given = self._samples(positions)
        try:
            self.before = [self.run(output) for output in outputs]
        except (RuntimeError, ValueError):
            if positions is None:
                raise
            self.given = self._samples(None)  # a tuner or a parameter knows the positions
            self.before = [self.run(output) for output in outputs]

    def _samples(self, positions: int | None) -> dict[fx.Node, Any]:
        values = {s: value for s in self.sources if (value := value_of(s)) is not None}
        axes = self.work.view().channel_axis
        return {s: _sample(v, self._generator, _BATCH, axes[s], positions) for s, v in values.items()}

    def error(self, results: Sequence[fx.Node]) -> float:
        """The largest difference of what takes the outputs' places, each relative to its largest value."""
        return max(relative_error(self.run(new), old) for new, old in zip(results, self.before, strict=True))

    def run(self, output: fx.Node) -> torch.Tensor:
        """The value of `output`; the same random inputs in every run."""
        nodes = _cone(output, self.sources)
        inside = set(nodes)
        known = dict(self.given)
        for node in (i for n in nodes for i in n.all_input_nodes):
            if node not in known and node not in inside and not is_state(node):
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

        return run_node(self.work.root, node, lookup, self.work.cast)


def _positions_needed(view: GraphView, sources: Collection[fx.Node], nodes: Collection[fx.Node]) -> int | None:
    """How many positions an axis prove a site; None for all, where sizes seem to be written into it."""
    for source in sources:
        value, axis = value_of(source), view.channel_axis[source]
        if value is None or value.rank < 3 or axis not in (1, value.rank - 1):
            return None
    inside = {*sources, *nodes}
    for n in nodes:
        known = view.classes[n] & _ANY_SIZE or n.meta.get("role") in ("tuner", "branch", "sum", "operation", "padding")
        if not known or "tokenwise" in view.classes[n]:
            return None
        if not all(i in inside or of_parameters(i) for i in n.all_input_nodes):
            return None
    return _POSITIONS if any("conv" in view.classes[n] for n in nodes) else _VECTORS


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


def _sample(
    value: Value, generator: torch.Generator, batch: int, channels: int | None = None, positions: int | None = None
) -> torch.Tensor:
    """Random numbers in float64, zeros for integers; axes other than that of the channels may be cut."""
    sizes = value.sizes(batch)
    if positions is not None:
        sizes = tuple(n if i == channels else min(n, positions) for i, n in enumerate(sizes))
    if value.dtype.is_floating_point:
        return torch.randn(sizes, generator=generator, dtype=torch.float64)
    return torch.zeros(sizes, dtype=value.dtype)
