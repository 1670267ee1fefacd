"""BatchNorm of the base, folded on request: `γ (W x + b − μ)/√(σ² + ε) + β = (f W) x + (f b + t)`, f = γ/√(σ² + ε).

Into the convolution or linear before it, where that is read by the norm alone and its weight by no other operation.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from utcompile.fold.layers import Planned, Unfoldable, Work
from utcompile.fold.scales import scale_of
from utcompile.fold.sinks import after_layer
from utcompile.graph import operation, readers


def plan_batch_norms(work: Work) -> Iterator[tuple[str, Planned | str]]:
    """Every BatchNorm by the path of its module, with what is to be done, or why it stays."""
    for node in list(work.graph.nodes):
        op = operation(node, work.root)
        if op.name != "batch_norm" or not op.inputs:
            continue
        name = op.parameters.get("running_mean", node.name).rpartition(".")[0] or node.name
        try:
            yield name, _plan(work, node)
        except Unfoldable as reason:
            yield name, str(reason)


def _plan(work: Work, node: fx.Node) -> Planned:
    op = operation(node, work.root)
    scale, (source,) = scale_of(work, node, op), op.inputs[:1]
    if scale is None:
        raise Unfoldable("it takes its statistics from its input")
    if len(readers(source)) != 1:
        raise Unfoldable(f"{source.name} is read in {len(readers(source))} places")
    before = operation(source, work.root)
    if before.name != "linear" and "conv" not in before.name:
        raise Unfoldable(f"{before.name} ({source.name}) before it is no convolution or linear")
    layer, weight, bias = after_layer(work, source, before, scale.map)

    def commit() -> list[fx.Node]:
        layer.change(weight, layer.outputs_bias(1) if bias is None else bias)
        work.remove_scale(node)
        return [source]

    return Planned(tuple(before.inputs), (node,), commit, 1.0)
