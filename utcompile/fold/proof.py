"""Proofs: a site before and after folding on random inputs, and the whole model in its own dtype."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx

from utcompile.errors import UtcError
from utcompile.fold.absorb import of_parameters
from utcompile.fold.constants import constant_nodes
from utcompile.fold.cost import count
from utcompile.fold.execute import Cast, run_node
from utcompile.fold.layers import Work
from utcompile.graph import GraphView, UtcGraphModule, Value, value_of

# of the whole model, in its own dtype: rounding of the folded weights, amplified through the layers
_MODEL_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}

_BATCH = 2
_POSITIONS = 16  # of a feature map: borders and what is no border, of most kernels
_VECTORS = 4  # where no position is computed from another
_ANY_SIZE = frozenset("conv norm activation dropout identity contiguous permute linear mul add".split())
_MUTED = {"sum": 0, "branch": 1, "tuner": 0}  # which argument a node of a site is, were its tuner not there


@dataclass(frozen=True)
class Proof:
    """What was found of a site.

    Attributes:
        error: the largest difference, relative to the largest value, in float64, before rounding.
        dtype_error: the same, in the model's dtype with rounded weights; None where the site does not run in it.
        retained: the share of the tuner's effect that rounding leaves, 1 where it was not asked for.
        parameters: that the site reads, before and after.
        flops: of the site for one sample, before and after; None where they cannot be counted.
    """

    error: float
    dtype_error: float | None
    retained: float
    parameters: tuple[int, int]
    flops: tuple[int, int] | None


class SiteProof:
    """One site's computation, from values that folding leaves alone to those that must stay the same.

    Whatever the model's dtype, what is proven is proven in float64. Values that come from elsewhere are random too. A
    site that has no sizes written into it computes at every position alike, so a few positions an axis prove it; with
    all of them, convolutions in float64 would take a hundred times as long.

    Args:
        work: the model being folded, before this site is.
        sources: values that folding leaves alone, from which both the tuner and what stands beside it are computed.
        outputs: the values that are to be compared.
        muted: the site whose effect is measured, where its nodes say which value they change.
    """

    def __init__(self, work: Work, sources: Sequence[fx.Node], outputs: Sequence[fx.Node], muted: str = "") -> None:
        self.work, self.sources, self.outputs = work, dict.fromkeys(sources), list(outputs)
        nodes = dict.fromkeys(n for output in outputs for n in _cone(output, self.sources))
        self._own = work.home[0]
        positions = _positions_needed(work.view(), self.sources, nodes)
        self._sample_sources(positions)
        try:
            self.before = self._run(outputs, work.cast)
        except (RuntimeError, ValueError):
            if positions is None:
                raise
            self._sample_sources(None)  # a tuner or a parameter knows the positions
            self.before = self._run(outputs, work.cast)
        self._before_own = self._run_own(outputs)
        self._base = self._run(outputs, work.cast, muted=muted) if muted else None
        self._cost = self._count(outputs)

    def check(self, results: Sequence[fx.Node]) -> Proof:
        """Compare with what takes the outputs' places.

        Args:
            results: one node an output.
        """
        after = self._run(results, self.work.cast)
        error = max(map(relative_error, after, self.before), default=0.0)
        own = self._run_own(results) if self._before_own is not None else None
        dtype_error = None
        if own is not None and self._before_own is not None:
            dtype_error = max(map(relative_error, own, self._before_own), default=0.0)
        cost = self._count(results)
        flops = None if None in (self._cost[1], cost[1]) else (self._cost[1], cost[1])
        return Proof(error, dtype_error, self.retained(results), (self._cost[0], cost[0]), flops)  # type: ignore[arg-type]

    def retained(self, results: Sequence[fx.Node]) -> float:
        """`<y' - y, e> / <e, e>`: y without the tuner, e the tuner's effect, y' folded and rounded."""
        if self._base is None:
            return 1.0
        rounded = self._run(results, lambda name, t: self.work.rounded(name, t, torch.float64))
        shares = []
        for y, found, old in zip(self._base, rounded, self.before, strict=True):
            effect = (old - y).flatten()
            energy = torch.dot(effect, effect).item()
            shares.append(torch.dot((found - y).flatten(), effect).item() / energy if energy else 1.0)
        return min(shares, default=1.0)

    # --- running it ---------------------------------------------------------------------------------------------------

    def _sample_sources(self, positions: int | None) -> None:
        self._generator = torch.Generator().manual_seed(0)
        values = {s: value for s in self.sources if (value := value_of(s)) is not None}
        axes = self.work.view().channel_axis
        self.given: dict[fx.Node, Any] = {
            s: _sample(v, self._generator, _BATCH, axes.get(s), positions) for s, v in values.items()
        }

    def _run_own(self, outputs: Sequence[fx.Node]) -> list[torch.Tensor] | None:
        if self._own == torch.float64:
            return self._run(outputs, self.work.cast)
        try:
            return self._run(outputs, self.work.rounded, lambda t: t.to(self._own))
        except RuntimeError:  # parts of the model have another dtype, or an operation lacks this one here
            return None

    def _count(self, outputs: Sequence[fx.Node]) -> tuple[int, int | None]:
        nodes = {n for output in outputs for n in _cone(output, self.sources)}
        stack = list(nodes)
        while stack:  # what tuners compute from parameters alone is part of the site
            beside = [i for i in stack.pop().all_input_nodes if "site" in i.meta and i not in self.given]
            stack += [i for i in beside if i not in nodes]
            nodes.update(beside)
        return count(self.work.root, sorted(nodes))

    def _run(
        self,
        outputs: Sequence[fx.Node],
        cast: Cast,
        given: Callable[[torch.Tensor], torch.Tensor] = lambda t: t,
        muted: str = "",
    ) -> list[torch.Tensor]:
        """The values of nodes; the same random inputs in every run."""
        nodes = sorted({n for output in outputs for n in _cone(output, self.sources)})
        inside = set(nodes)
        known: dict[fx.Node, Any] = {}
        constant = constant_nodes(self.work.graph)

        def value(node: fx.Node) -> Any:
            if node not in known:
                is_new = node not in self.given
                if node in inside or (is_new and (of_parameters(node) or node in constant)):
                    known[node] = compute(node)
                else:
                    if is_new:
                        self.given[node] = self._outside(node)
                    found = self.given[node]
                    is_float = isinstance(found, torch.Tensor) and found.is_floating_point()
                    known[node] = given(found) if is_float else found
            return known[node]

        def compute(node: fx.Node) -> Any:
            role = node.meta.get("role")
            if muted and node.meta.get("site") == muted and role in _MUTED:
                if role == "tuner" and len(node.args) > 1:  # of several parameters
                    return fx.node.map_arg(node.args, value)
                return value(node.args[_MUTED[role]])  # type: ignore[arg-type]
            return run_node(self.work.root, node, value, cast)

        for node in nodes:
            value(node)
        results = []
        for output in outputs:
            parts = [t for t in pytree.tree_leaves(value(output)) if isinstance(t, torch.Tensor)]
            results.append(parts[0] if len(parts) == 1 else torch.cat([t.flatten() for t in parts]))  # recurrent layers
        return results

    def _outside(self, node: fx.Node) -> Any:
        if "size" in node.meta:
            return node.meta["size"].at(_BATCH)
        value = value_of(node)
        assert value is not None
        return _sample(value, self._generator, _BATCH)


def _positions_needed(view: GraphView, sources: Collection[fx.Node], nodes: Collection[fx.Node]) -> int | None:
    """How many positions an axis prove a site; None for all, where sizes seem to be written into it."""
    for source in sources:
        value, axis = value_of(source), view.channel_axis.get(source)
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


def prove_model(tuned: UtcGraphModule, folded: UtcGraphModule) -> float:
    """The largest relative difference of the outputs, in the model's dtype; both are left in the modes they had.

    Raises:
        UtcError: it is larger than rounding explains.
    """
    parameter = next(tuned.parameters(), torch.empty(0))
    inputs = model_inputs(tuned, parameter.device)
    modes = {m: m.training for m in tuned.modules()}
    tuned.eval()
    try:
        with torch.no_grad():
            expected, found = (
                [t for t in pytree.tree_leaves(m(**inputs)) if isinstance(t, torch.Tensor) and t.is_floating_point()]
                for m in (tuned, folded)
            )
    finally:
        for module, mode in modes.items():
            module.training = mode
    error = max((relative_error(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)
    if error > _MODEL_TOLERANCE.get(parameter.dtype, 1e-3):
        raise UtcError(
            f"the folded model's outputs differ by {error:.1e} of their largest value",
            why="every site was proven, so this is rounding that the model amplifies",
            fix="fold in float64: utc.fold(tuned.double())",
        )
    return error


def count_flops(tuned: UtcGraphModule, folded: UtcGraphModule) -> tuple[int, int] | None:
    """Of both for one sample; None where a tuner does not say."""
    found = [count(module, module.graph.nodes)[1] for module in (tuned, folded)]
    return None if found[0] is None or found[1] is None else (found[0], found[1])


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
