"""The shapes of the frontier's inputs: which of their axes may be of another size in another task."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from torch import Tensor

from utcompile.deploy.task_axes import Varying, axes_in, with_one_more
from utcompile.deploy.task_files import AxisNames, Dims
from utcompile.deploy.task_values import Builder, Values


def shapes_of(builder: Builder, own: Mapping[str, Tensor], varying: Varying, defaults: Values) -> dict[str, Dims]:
    """The shape of each input; the name of an axis where it grows with one."""
    shapes: dict[str, Dims] = {name: [*value.shape] for name, value in defaults.items()}
    for axis in axes_in(varying):
        larger = builder({**own, **with_one_more(own, varying, axis)})
        for name, value in defaults.items():
            grows = [a != b for a, b in zip(value.shape, larger[name].shape, strict=True)]
            shapes[name] = [axis if g else known for g, known in zip(grows, shapes[name], strict=True)]
    return shapes


def declare(model: ir.Model, shapes: Mapping[str, Dims], defaults: Values, outputs: Mapping[str, AxisNames]) -> None:
    """Declare the inputs of the frontier, and make what differs between tasks an axis of the file."""
    for value in model.graph.inputs:
        if value.name is not None and value.name in shapes:
            value.shape = ir.Shape(shapes[value.name])
            value.type = ir.TensorType(ir.DataType.from_numpy(defaults[value.name].dtype))
    _forget_sizes(model.graph, defaults)
    for value in model.graph.outputs:
        if names := outputs.get(str(value.name)):
            assert value.shape is not None
            value.shape = ir.Shape([name or size for name, size in zip(names, value.shape, strict=True)])


def _forget_sizes(graph: ir.Graph, defaults: Values) -> None:
    """Inner values have the sizes of the trace, which an optimiser would take for constants: forget those that vary."""
    sizes: dict[ir.Value, set[int]] = {}
    for value in graph.inputs:
        if value.name in defaults and value.shape is not None:
            pairs = zip(value.shape, defaults[value.name].shape, strict=True)
            sizes[value] = {size for name, size in pairs if not isinstance(name, int)}
    for node in graph:
        vary = set[int]().union(*(sizes.get(v, set()) for v in node.inputs if v is not None))
        for value in node.outputs if vary else ():
            kept = [None if i and size in vary else size for i, size in enumerate(value.shape or ())]
            if None in kept:
                value.shape, sizes[value] = ir.Shape(kept), vary
