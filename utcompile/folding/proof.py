"""The proof of a site: what it computes before and after folding, on random inputs, in float64."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
import torch.utils._pytree as pytree
from torch import fx

from utcompile.folding.algebra.constant_nodes import ConstantNodes
from utcompile.folding.algebra.parameters import of_parameters
from utcompile.folding.cost import count
from utcompile.folding.execute import as_real, in_precision
from utcompile.folding.folding import Folding, Unfoldable
from utcompile.folding.site import untuned
from utcompile.graph import Cast, GraphView, Role, UtcGraphModule, Value, ancestors, info, run_node, value_of
from utcompile.graph.difference import relative_error
from utcompile.graph.likeness import rows_indexed
from utcompile.graph.stored import is_stored
from utcompile.ops import Axes, Trait, having

_DRAWS = 3
_POSITIONS = 16  # of a feature map: borders and what is no border, of most kernels
_VECTORS = 4  # where no position is computed from another
_ANY_SIZE = frozenset("conv norm activation dropout linear".split())
_KEPT = having(Trait.SAME | Trait.ARITHMETIC)
_TURNED = having(Axes.PERMUTE)
_SIZED = (Role.TUNER, Role.BRANCH, Role.SUM, Role.OPERATION, Role.PADDING)  # their values have known sizes


@dataclass(frozen=True)
class Proof:
    """The measurements of a site.

    Attributes:
        error: the largest difference, relative to the largest value, in float64, before rounding.
        dtype_error: the same, in the model's dtype with rounded weights; None where the site does not run in it.
        retained: the share of the tuner's effect that rounding leaves, 1 where it was not measured.
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

    Whatever the model's dtype, what is proven is proven in float64. Numbers that come from elsewhere are random too;
    integers and booleans are those that the model has on the example and on calls like it, and are drawn where that is
    known to be right: ids of the whole table, and coins for booleans. A site that reads any is run several times. A
    site that has no sizes written into it computes at every position alike, so a few positions an axis prove it; with
    all of them, convolutions in float64 would take a hundred times as long.

    Args:
        model: the model being folded, before this site is.
        sources: values that folding leaves alone, from which both the tuner and the layers parallel to it are computed.
        outputs: the values that are to be compared.
        muted: the site whose effect is measured, where its nodes say which value they change.

    Raises:
        Unfoldable: the site does not run alone, or yields no finite number.
    """

    def __init__(self, model: Folding, sources: Sequence[fx.Node], outputs: Sequence[fx.Node], muted: str = "") -> None:
        self.model, self.sources, self.outputs = model, dict.fromkeys(sources), list(outputs)
        nodes = dict.fromkeys(n for output in outputs for n in _cone(output, self.sources))
        self._own = model.home[0]
        self._generator = torch.Generator().manual_seed(0)
        self.draws: list[_Draw] = []
        self.before: list[torch.Tensor] = []
        self._run_first(outputs, _positions_needed(model.known([*self.sources, *nodes]), self.sources, nodes))
        self._run_others(outputs)
        if self.before and not any(t.isfinite().any() for t in self.before if t.numel()):
            raise Unfoldable("it yields no finite number on any inputs that were tried, so nothing can be proven")
        self._before_own = self._run_own(outputs)
        self._base = self._run(outputs, model.cast, muted=muted) if muted else None
        self._cost = self._count(outputs)

    def check(self, results: Sequence[fx.Node]) -> Proof:
        """Compare with what takes the outputs' places.

        Args:
            results: one node per output.
        """
        after = self._run(results, self.model.cast)
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
        rounded = self._run(results, lambda name, t: self.model.rounded(name, t, torch.float64))
        shares = []
        for y, found, old in zip(self._base, rounded, self.before, strict=True):
            effect = as_real((old - y).nan_to_num()).flatten()
            energy = torch.dot(effect, effect).item()
            moved = as_real((found - y).nan_to_num()).flatten()
            shares.append(torch.dot(moved, effect).item() / energy if energy else 1.0)
        return min(shares, default=1.0)

    # --- running it ---------------------------------------------------------------------------------------------------

    def _run_first(self, outputs: Sequence[fx.Node], positions: int | None) -> None:
        """Draw 0; with all positions where a tuner or a parameter knows them."""
        for cut in dict.fromkeys((positions, None)):
            self.draws = [_Draw(self.model, self.sources, 0, self._generator, cut)]
            try:
                self.before = self._run(outputs, self.model.cast)
                return
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                failed = error
        raise Unfoldable(f"it does not run alone: {type(failed).__name__}: {str(failed).partition(chr(10))[0]}")

    def _run_others(self, outputs: Sequence[fx.Node]) -> None:
        """More draws, where something chooses; those that do not fit the model are left out."""
        first = self.draws
        for number in range(1, _DRAWS if first[0].chooses else 1):
            self.draws = [_Draw(self.model, self.sources, number, self._generator, None)]
            try:
                self.before += self._run(outputs, self.model.cast)
            except (RuntimeError, ValueError, IndexError, TypeError):
                continue
            first = [*first, *self.draws]
        self.draws = first

    def _run_own(self, outputs: Sequence[fx.Node]) -> list[torch.Tensor] | None:
        if self._own == torch.float64:
            return self._run(outputs, self.model.cast)
        try:
            return self._run(outputs, self.model.rounded, lambda t: in_precision(t, self._own))
        except RuntimeError:  # parts of the model have another dtype, or an operation lacks this one here
            return None

    def _count(self, outputs: Sequence[fx.Node]) -> tuple[int, int | None]:
        nodes = {n for output in outputs for n in _cone(output, self.sources)}
        stack = list(nodes)
        while stack:  # what tuners compute from parameters alone is part of the site
            given = self.draws[0].given
            beside = [i for i in stack.pop().all_input_nodes if info(i).site is not None and i not in given]
            stack += [i for i in beside if i not in nodes]
            nodes.update(beside)
        return count(self.model.root, sorted(nodes))

    def _run(
        self,
        outputs: Sequence[fx.Node],
        cast: Cast,
        given: Callable[[torch.Tensor], torch.Tensor] = lambda t: t,
        muted: str = "",
    ) -> list[torch.Tensor]:
        """The values of nodes, draw by draw; the same random inputs in every run."""
        return [t for draw in self.draws for t in self._run_one(draw, outputs, cast, given, muted)]

    def _run_one(
        self,
        draw: _Draw,
        outputs: Sequence[fx.Node],
        cast: Cast,
        given: Callable[[torch.Tensor], torch.Tensor],
        muted: str,
    ) -> list[torch.Tensor]:
        nodes = sorted({n for output in outputs for n in _cone(output, self.sources)})
        inside = set(nodes)
        known: dict[fx.Node, object] = {}
        constant = ConstantNodes()

        def value(node: fx.Node) -> object:
            if node not in known:
                is_new = node not in draw.given
                if node in inside or (is_new and (of_parameters(node) or node in constant or is_stored(node))):
                    known[node] = compute(node)
                else:
                    known[node] = pytree.tree_map(lambda t: given(t) if isinstance(t, torch.Tensor) else t, draw[node])
            return known[node]

        def compute(node: fx.Node) -> object:
            if muted and info(node).site == muted:
                if (changed := untuned(node)) is not None:
                    return value(changed)
                if info(node).role == Role.TUNER:  # of one parameter or value, or of several
                    return value(node.args[0]) if len(node.args) == 1 else fx.node.map_arg(node.args, value)  # type: ignore[arg-type]
            return run_node(self.model.root, node, value, cast)

        for node in nodes:
            value(node)
        results = []
        for output in outputs:
            parts = [t for t in pytree.tree_leaves(value(output)) if isinstance(t, torch.Tensor)]
            parts = [t for t in parts if t.is_floating_point() or t.is_complex()] or parts
            results.append(parts[0] if len(parts) == 1 else torch.cat([t.flatten() for t in parts]))  # recurrent layers
        return results


class _Draw:
    """What a site is given in one run: its sources, and what it reads from outside.

    Args:
        number: 0 has the model's own integers and booleans on the example, 1 those on a call like it, with ids of the
            whole table; 2 has coins for booleans too.
        positions: how many positions an axis of the sources.
    """

    def __init__(
        self,
        model: Folding,
        sources: Collection[fx.Node],
        number: int,
        generator: torch.Generator,
        positions: int | None,
    ) -> None:
        self.model, self.number, self.generator = model, number, generator
        self.chooses = False
        self.given: dict[fx.Node, object] = {}
        axes = model.known(sources).channel_axis
        for source in sources:
            self.given[source] = self._value(source, axes.get(source), positions)

    def __getitem__(self, node: fx.Node) -> object:
        if node not in self.given:
            self.given[node] = self._value(node)
        return self.given[node]

    def _value(self, node: fx.Node, channels: int | None = None, positions: int | None = None) -> object:
        batch = self.model.batch
        value = value_of(node)
        if (size := info(node).size) is not None and value is None:
            return size.at(batch)
        if value is not None and (value.dtype.is_floating_point or value.dtype.is_complex):
            return _drawn(value, self.generator, batch, channels, positions)
        table = rows_indexed(node, self.model.root) if self.number else None
        if value is not None and table is not None:
            self.chooses = True
            return torch.randint(0, table, value.sizes(batch), generator=self.generator).to(value.dtype)
        found = self.model.observed(node, self.number)
        self.chooses |= value is not None or not isinstance(found, (torch.dtype, torch.device, type(None)))
        if found is None and value is not None:
            found = torch.ones(value.sizes(batch), dtype=value.dtype)
        if self.number == _DRAWS - 1 and isinstance(found, torch.Tensor) and found.dtype == torch.bool:
            return _coins(found, self.generator)
        return found


def _positions_needed(view: GraphView, sources: Collection[fx.Node], nodes: Collection[fx.Node]) -> int | None:
    """How many positions an axis prove a site; None for all, where sizes seem to be written into it."""
    for source in sources:
        value, axis = value_of(source), view.channel_axis.get(source)
        if value is None or value.rank < 3 or axis not in (1, value.rank - 1):
            return None
    inside = {*sources, *nodes}
    for n in nodes:
        known = (
            view.classes[n] & _ANY_SIZE
            or (name := view.operations[n].name) in _KEPT
            or name in _TURNED
            or info(n).role in _SIZED
        )
        if not known or "tokenwise" in view.classes[n]:
            return None
        if not all(i in inside or of_parameters(i) for i in n.all_input_nodes):
            return None
    return _POSITIONS if any("conv" in view.classes[n] for n in nodes) else _VECTORS


def _cone(output: fx.Node, sources: Collection[fx.Node]) -> list[fx.Node]:
    """The nodes between: computed from the sources, and needed for the output, in graph order."""
    below: set[fx.Node] = {*sources}
    order: list[fx.Node] = []
    started = False
    for node in output.graph.nodes:
        started |= node in sources
        if started and node not in sources and any(i in below for i in node.all_input_nodes):
            below.add(node)
            order.append(node)
        if node is output:
            break
    upward = set(ancestors([output], until=lambda n: n not in below or n in sources))
    return [n for n in order if n in upward]


def count_flops(tuned: UtcGraphModule, folded: UtcGraphModule) -> tuple[int, int] | None:
    """Of both for one sample; None where a tuner does not say."""
    found = [count(module, module.graph.nodes)[1] for module in (tuned, folded)]
    return None if found[0] is None or found[1] is None else (found[0], found[1])


def _drawn(
    value: Value, generator: torch.Generator, batch: int, channels: int | None = None, positions: int | None = None
) -> torch.Tensor:
    """Random numbers in float64; axes other than that of the channels may be cut."""
    sizes = value.sizes(batch)
    if positions is not None:
        sizes = tuple(n if i == channels else min(n, positions) for i, n in enumerate(sizes))
    dtype = torch.complex128 if value.dtype.is_complex else torch.float64
    return torch.randn(sizes, generator=generator, dtype=dtype)


def _coins(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Booleans at random, with at least one that is true in each row: a mask that leaves nothing proves nothing."""
    drawn = torch.rand(like.shape, generator=generator) < 0.5
    if drawn.dim() and drawn.numel():
        drawn[..., 0] = True
    return drawn
