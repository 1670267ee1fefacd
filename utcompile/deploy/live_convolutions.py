"""Convolutions whose weight or bias is a task's: ONNX Runtime's fast layout on a CPU takes constants alone."""

from __future__ import annotations

import onnx_ir as ir


def _read_by_convolutions(model: ir.Model, index: int) -> list[ir.Node]:
    """The convolutions whose input at an index is an input of the file."""
    inputs = set(model.graph.inputs)
    nodes = [node for node in model.graph.all_nodes() if node.op_type == "Conv" and len(node.inputs) > index]
    return [node for node in nodes if node.inputs[index] in inputs]


def biases_of_convolutions(model: ir.Model) -> list[str]:
    """The inputs that only convolutions with constant weights read, as their bias."""
    slow = set(_read_by_convolutions(model, 1))
    found = {node.inputs[2] for node in _read_by_convolutions(model, 2) if node not in slow}
    return sorted(
        str(value.name)
        for value in found
        if value is not None
        and all(u.idx == 2 and u.node.op_type == "Conv" and u.node not in slow for u in value.uses())
    )


def slow_parts(model: ir.Model) -> tuple[str, ...]:
    """What ONNX Runtime does slowly where a weight or a bias is no constant, as notes."""
    weights = sorted({str(node.inputs[1].name) for node in _read_by_convolutions(model, 1) if node.inputs[1]})
    if weights:
        return (
            f"{len(weights)} weights of convolutions are inputs, and ONNX Runtime's fast layout on a CPU takes "
            "constants alone: expect 2 to 3 times the latency. Folded files, one per task, have none of it; nor has "
            f"OnnxModel with rules that tune biases and the head (bitfit/biases): {', '.join(weights[:4])}",
        )
    if biases := biases_of_convolutions(model):
        return (
            f"{len(biases)} biases of convolutions are inputs: OnnxModel computes them in ONNX Runtime's fast layout "
            "on a CPU, as fast as the base; a plain session takes 2 to 3 times the latency",
        )
    return ()
