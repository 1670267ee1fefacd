"""BatchNorm of the base, folded on request: `γ (W x + b − μ)/√(σ² + ε) + β = (f W) x + (f b + t)`, f = γ/√(σ² + ε).

Into the convolution or linear before it, where that is read by the norm alone and its weight by no other operation.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from utcompile.fold.folding import Folding, Unfoldable
from utcompile.fold.patch import Draft, Patch
from utcompile.fold.scales import scale_of, without_scale
from utcompile.fold.sinks import after_layer
from utcompile.graph import operation, readers


def plan_batch_norms(model: Folding) -> Iterator[tuple[str, Patch | str]]:
    """Every BatchNorm by the path of its module, with what is to be done, or why it stays."""
    for node in list(model.graph.nodes):
        op = operation(node, model.root)
        if op.name != "batch_norm" or not op.inputs:
            continue
        name = op.parameters.get("running_mean", node.name).rpartition(".")[0] or node.name
        try:
            yield name, _plan(model, node)
        except Unfoldable as reason:
            yield name, str(reason)


def _plan(model: Folding, node: fx.Node) -> Patch:
    op = operation(node, model.root)
    scale, (source,) = scale_of(model, node, op), op.inputs[:1]
    if scale is None:
        raise Unfoldable("it takes its statistics from its input")
    if len(readers(source)) != 1:
        raise Unfoldable(f"{source.name} is read in {len(readers(source))} places")
    before = operation(source, model.root)
    if before.name != "linear" and "conv" not in before.name:
        raise Unfoldable(f"{before.name} ({source.name}) before it is no convolution or linear")
    layer, weight, bias = after_layer(model, source, before, scale.map)

    draft = Draft()
    layer.change(draft, weight, layer.outputs_bias(1) if bias is None else bias)
    draft.edits.append(without_scale(node))
    return draft.patch(before.inputs, (node,), 1.0)
