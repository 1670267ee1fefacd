"""Files in half precision: weights alone in float16, or the arithmetic too."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

DTYPES = ("float32", "float16-weights", "float16")
_SMALL = 16  # numbers; below it nothing is saved


def store_in_half(model: ir.Model) -> tuple[str, ...]:
    """Store float32 weights in float16, each with a cast that ONNX Runtime computes once, when it loads the file.

    Returns:
        A note for weights that do not fit in float16 and stay as they are.
    """
    graph, casts, kept = model.graph, [], []
    for name in list(graph.initializers):
        value = graph.initializers[name]
        if value.dtype is not ir.DataType.FLOAT or value.const_value is None or value.const_value.size < _SMALL:
            continue
        if value.is_graph_input() or value.is_graph_output():
            continue
        with np.errstate(over="ignore"):
            small = value.const_value.numpy().astype(np.float16)
        if not np.isfinite(small).all():
            kept.append(name)
            continue
        casts.append(_stored(graph, value, small))
    graph.insert_before(graph[0], casts)
    return (f"stays in float32, beyond the range of float16: {', '.join(kept[:8])}",) if kept else ()


def _stored(graph: ir.Graph, value: ir.Value, small: np.ndarray) -> ir.Node:
    name = value.name
    assert name is not None
    del graph.initializers[name]
    stored = ir.Value(
        name=name,
        shape=ir.Shape(small.shape),
        type=ir.TensorType(ir.DataType.FLOAT16),
        const_value=ir.tensor(small, name=name),
    )
    graph.register_initializer(stored)
    cast = ir.node("Cast", [stored], attributes={"to": ir.DataType.FLOAT})
    cast.outputs[0].name = f"{name}.float32"
    ir.convenience.replace_all_uses_with(value, cast.outputs[0])
    return cast


def operations_in_float32(model: ir.Model) -> tuple[str, ...]:
    """A note that lists the operations of a float16 file that compute in float32."""
    found = {
        node.op_type
        for node in model.graph.all_nodes()
        if node.op_type not in ("Cast", "Constant") and any(out.dtype is ir.DataType.FLOAT for out in node.outputs)
    }
    return (f"computed in float32: {', '.join(sorted(found))}",) if found else ()
