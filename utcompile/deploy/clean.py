"""A clean file: weights carry the names of their parameters, and nothing of the exporter stays behind."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

_SMALL = 16  # numbers; below it two tensors may be equal by chance
Names = Mapping[tuple[object, ...], str]


def clean(model: ir.Model, state: Mapping[str, Tensor]) -> None:
    """Name anonymous weights after their parameters, and drop shapes of inner values, notes and source lines."""
    _name_weights(model.graph, state)
    outputs = set(model.graph.outputs)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if value not in outputs and value.graph is model.graph:
                # the quantisers of ONNX Runtime take wrong ones for true; they can be inferred again
                value.type = value.shape = None
    for value in [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    model.doc_string = None
    model.metadata_props.clear()


def _name_weights(graph: ir.Graph, state: Mapping[str, Tensor]) -> None:
    taken = {v.name for v in graph.inputs} | {o.name for node in graph.all_nodes() for o in node.outputs}
    unnamed = {
        value: value.const_value
        for name, value in graph.initializers.items()
        if name not in state and not value.is_graph_input()
        if value.const_value is not None and value.const_value.size >= _SMALL
    }
    names = _names_of(state, {tuple(values.shape.numpy()) for values in unnamed.values()})
    for value, values in unnamed.items():
        found = names.get(_key(values.numpy()))
        if found is not None:
            rename(graph, value, free_name(found, {*taken, *graph.initializers}))


def _names_of(state: Mapping[str, Tensor], shapes: Collection[tuple[int, ...]]) -> Names:
    """The names of parameters of some shapes by the bytes of their values, and of the values of their transposes."""
    found: dict[tuple[object, ...], str] = {}
    for name, tensor in state.items():
        own = tuple(tensor.shape)
        if not {own, own[::-1]} & set(shapes) or not tensor.is_floating_point() or tensor.layout is not torch.strided:
            continue
        try:
            values = tensor.detach().cpu().numpy()
        except (TypeError, RuntimeError):  # a dtype that numpy lacks, or a tensor class without memory
            continue
        found.setdefault(_key(values), name)
        if values.ndim == 2:
            found.setdefault(_key(values.T), name)
    return found


def free_name(name: str, taken: set[str | None]) -> str:
    """A name, with a number behind it where it is taken."""
    chosen, number = name, 1
    while chosen in taken:
        chosen, number = f"{name}.{number}", number + 1
    return chosen


def rename(graph: ir.Graph, value: ir.Value, name: str) -> None:
    """Give an initialiser another name."""
    value.name = name
    if value.const_value is not None:
        value.const_value.name = name


def _key(values: np.ndarray) -> tuple[object, ...]:
    data = np.ascontiguousarray(values)
    return data.shape, str(data.dtype), hashlib.blake2b(data.tobytes(), digest_size=16).digest()
