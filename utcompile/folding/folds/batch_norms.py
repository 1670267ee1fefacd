"""BatchNorms of the base, folded on request into the convolutions and linears before them."""

from __future__ import annotations

from collections.abc import Iterator

from utcompile.folding.algebra.scales import scale_of, without_scale
from utcompile.folding.algebra.sinks import after_layer
from utcompile.folding.base import BaseFold
from utcompile.folding.case import Case
from utcompile.folding.folding import Folding, Options, Unfoldable
from utcompile.folding.patch import Draft, Patch
from utcompile.folding.site import Part
from utcompile.graph import operation, owner_path, readers


class BatchNorms(BaseFold):
    """`γ (W x + b − μ)/√(σ² + ε) + β = (f W) x + (f b + t)`, f = γ/√(σ² + ε)."""

    name = "batch_norms"
    status = "absorbed"
    cases = (
        Case(
            "C2",
            "`batch_norms=True`: `γ (W x + b − μ)/√(σ² + ε) + β = (f W) x + (f b + t)`, f = γ/√(σ² + ε)",
            "nothing else reads the convolution; and no second operation its weight",
            "a second reader would see it scaled",
            "folding/test_constants.py::test_a_batch_norm_stays_where_more_than_it_reads_the_convolution",
        ),
    )

    def wanted(self, options: Options) -> bool:
        """With `batch_norms=True`."""
        return options.batch_norms

    def parts(self, model: Folding) -> Iterator[Part]:
        """Every BatchNorm, by the path of its module."""
        for node in list(model.graph.nodes):
            op = operation(node, model.root)
            if op.name == "batch_norm" and op.inputs:
                path = owner_path(op.parameters.get("running_mean", node.name))
                yield Part(path or node.name, node)

    def plan(self, part: Part, model: Folding) -> Patch:
        """Scale the layer before.

        Raises:
            Unfoldable: there is none that the norm alone reads, or whose weight it alone has.
        """
        node = part.node
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
