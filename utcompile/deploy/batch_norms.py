"""Frozen BatchNorms after convolutions whose bias alone is trained: the bias becomes the convolution's.

`BN(Wx + b) = (γ/σ W) x + (β + γ/σ (b - μ))`. The weight stays a constant, so ONNX Runtime keeps its fast layout, and
what is computed with the trained β lies above the frontier.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from utcompile.deploy.frontier import initializer


def fold_into_convolutions(graph: ir.Graph, trained: Collection[str]) -> int:
    """Fold such BatchNorms, in float64; the graph is changed in place. Returns how many there were."""
    return sum(_folded(graph, node, trained) for node in list(graph) if node.op_type == "BatchNormalization")


def _folded(graph: ir.Graph, norm: ir.Node, trained: Collection[str]) -> bool:
    x, gamma, beta, mean, variance = norm.inputs
    conv = x.producer() if x is not None else None
    if conv is None or conv.op_type != "Conv" or len(x.uses()) != 1 or x.is_graph_output():  # type: ignore[union-attr]
        return False
    if beta is None or beta.name not in trained:
        return False
    weight, bias = conv.inputs[1], conv.inputs[2] if len(conv.inputs) > 2 else None
    constants = [_constant(v, trained) for v in (weight, gamma, mean, variance)]
    before = np.zeros(1) if bias is None or _is_zero(bias) else _constant(bias, trained)
    if before is None or any(c is None for c in constants):
        return False
    w, g, m, v = (np.asarray(c, np.float64) for c in constants)
    scale = g / np.sqrt(v + norm.attributes.get_float("epsilon", 1e-5))
    name = str(norm.outputs[0].name)
    changed = (w * scale.reshape(-1, *[1] * (w.ndim - 1))).astype(np.float32)
    shift = (scale * (before - m)).astype(np.float32)
    add = ir.node("Add", [beta, initializer(graph, shift, f"{name}.shift")])
    add.outputs[0].name = f"{name}.bias"
    add.outputs[0].shape, add.outputs[0].type = ir.Shape(shift.shape), ir.TensorType(ir.DataType.FLOAT)
    made = ir.node(
        "Conv",
        [conv.inputs[0], initializer(graph, changed, f"{name}.weight"), add.outputs[0]],
        attributes={key: attribute.value for key, attribute in conv.attributes.items()},
    )
    graph.insert_before(norm, [add, made])
    old, new = norm.outputs[0], made.outputs[0]
    new.shape, new.type = old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove([norm, conv], safe=True)
    new.name = name
    return True


def _constant(value: ir.Value | None, trained: Collection[str]) -> np.ndarray | None:
    """The values of a float32 constant that is not trained."""
    if value is None or value.name in trained or value.const_value is None or value.dtype is not ir.DataType.FLOAT:
        return None
    return value.const_value.numpy()


def _is_zero(value: ir.Value) -> bool:
    """Whether a value is the zero bias that the exporter writes for a convolution without one."""
    node = value.producer()
    while node is not None and node.op_type in ("Expand", "CastLike", "Cast") and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "Constant":
        return False
    found = node.attributes.get("value_float") or node.attributes.get("value")
    number = getattr(found, "value", None)
    return number is not None and not np.any(number.numpy() if hasattr(number, "numpy") else number)
