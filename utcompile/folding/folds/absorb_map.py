"""Absorption of tuners that are one affine map of channels, `v -> M v + c`."""

from __future__ import annotations

import torch
from torch import fx

from utcompile.folding.algebra import routes, sinks, travel
from utcompile.folding.algebra.routes import Changes, map_after, map_before
from utcompile.folding.algebra.scales import scale_of
from utcompile.folding.algebra.sinks import parallel_layer
from utcompile.folding.algebra.travel import Elementwise, Map, Mixing
from utcompile.folding.base import Fold
from utcompile.folding.folding import Folding, Unfoldable
from utcompile.folding.patch import Draft, Patch, Remove, Replace
from utcompile.folding.site import Site, untuned
from utcompile.graph import operation, readers, tensor
from utcompile.tuners import ChannelMap


class AbsorbMap(Fold):
    """A linear tuner of values goes into layers around it.

    A sequential tuner goes back through what lies between (`algebra/routes.py`) to layers that take it at their output
    (`algebra/sinks.py`); where there are none, on to those that take it at their input, all of them. A parallel one
    goes into the layer parallel to it that reads the same x.
    """

    status = "absorbed"
    trusted = True
    cases = (*sinks.CASES, *travel.CASES, *routes.CASES)

    def requires(self, site: Site, model: Folding) -> bool:
        """A tuner of values that is one linear map of channels."""
        return site.linear is not None

    def plan(self, site: Site, model: Folding) -> Patch:
        """Find where the map can go.

        Raises:
            Unfoldable: nowhere.
        """
        assert site.linear is not None
        tuner, source = site.call, site.source
        if site.total is not None:
            return _parallel(model, tuner, site.total, source, _as_map(site.linear, tensor(tuner).rank))
        m = _as_map(site.linear, tensor(source).rank)
        try:
            changes, outputs = map_before(model, source, m, [tuner]), [tuner]
        except Unfoldable as first:
            try:
                changes, outputs = map_after(model, tuner, m)
                changes.sources = [source]
            except Unfoldable as second:
                raise Unfoldable(f"before it, {first}; after it, {second}") from None
        draft = Draft()
        changes.make(draft)
        draft.edits.append(Replace(tuner, by=source))
        return draft.patch(changes.sources, outputs)


def _as_map(linear: ChannelMap, rank: int) -> Map:
    if linear.matrix.dim() > 1:
        return Mixing(linear.axis, linear.matrix, linear.shift)
    shape = [-1 if a == linear.axis else 1 for a in range(rank)]
    return Elementwise(linear.matrix.reshape(shape), linear.shift.reshape(shape))


def _parallel(model: Folding, tuner: fx.Node, total: fx.Node, source: fx.Node, m: Map) -> Patch:
    """Into the layer that reads what the tuner reads, through the frozen scales between it and the sum."""
    value, reader = total.args[0], total
    assert isinstance(value, fx.Node)
    rank = tensor(total).rank
    scale: Elementwise | None = None
    neutral: dict[str, torch.Tensor] = {}
    while True:
        if len(readers(value)) != 1:
            other = next(u for u in readers(value) if u is not reader)
            raise Unfoldable(f"{value.name} is read by {other.name} too")
        op = operation(value, model.root)
        found = scale_of(model, value, op)
        if (below := untuned(value)) is not None:  # another tuner is added here
            step = below
        elif found is not None:
            if scale is None:
                scale = Elementwise(torch.ones((1,) * rank).double(), torch.zeros((1,) * rank).double())
            f, t = found.map.factor, found.map.shift
            scale = Elementwise(scale.factor * f, scale.factor * t + scale.shift)
            neutral |= found.neutral(model)
            step = found.source
        elif op.name in ("dropout", "identity", "contiguous"):
            (step,) = op.inputs
        else:
            break
        value, reader = step, value
    if op.inputs != (source,):
        reads = op.inputs[0].name if op.inputs else "nothing"
        raise Unfoldable(f"it reads {source.name}, and {op.name} ({value.name}) parallel to it reads {reads}")
    changes = Changes([parallel_layer(model, value, op, m, scale)], neutral)

    draft = Draft()
    changes.make(draft)
    assert isinstance(total.args[0], fx.Node)
    draft.edits += [Replace(total, by=total.args[0]), Remove(tuner)]
    return draft.patch((source,), (total,))
