"""The live frontier: the last values of a graph that are made of trained tensors alone become inputs with defaults.

A graph is cut where data meets what was trained. Above the cut lies what the tuners make of their tensors: transposes,
products as `s · B A`, changed weights, repeated prefixes. It becomes a small *builder* model, which is run once per
task. Below it lies the backbone, which reads the cut's values as inputs. No kind of tuner has code here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from utcompile.deploy.clean import free_name
from utcompile.errors import UtcError

LIVE = "live/"  # in front of the builder's outputs, whose names are those of inputs of the file
_SHAPES = ("Shape", "Size")


@dataclass(frozen=True)
class Live:
    """A value of the frontier.

    Attributes:
        name: of the input in the file, after the first trained tensor that it is made of.
        sources: the trained tensors that it is made of.
        is_scalar: whether the value has no dimension; its input has one of size 1, because adapters have no other.
    """

    name: str
    sources: tuple[str, ...]
    is_scalar: bool


def cut(
    model: ir.Model, trained: Iterable[str], varying: Mapping[str, Sequence[str | None]]
) -> tuple[tuple[Live, ...], ir.Model]:
    """Cut a graph that was exported without optimising it; it is changed in place.

    The new inputs have no value yet: an optimiser takes an input with a default for a constant, and may drop it.

    Args:
        trained: names of initialisers.
        varying: those in whose shapes tasks may differ: the name of an axis, or None, per dimension.

    Returns:
        The frontier, and the builder: from the trained tensors to the frontier's values, named `live/NAME`.

    Raises:
        UtcError: nothing of what was trained is read.
    """
    graph = model.graph
    sources = [graph.initializers[name] for name in dict.fromkeys(trained) if name in graph.initializers]
    body, live, constant = _above(graph, sources)
    _keep_leading_sizes(graph, body, varying)
    inner = set(body)
    order = {value: i for i, value in enumerate([*sources, *(out for node in body for out in node.outputs)])}
    front = [v for v in order if v in live and (v.is_graph_output() or any(u.node not in inner for u in v.uses()))]
    if not front:
        raise UtcError(
            "the model reads no tensor that was trained",
            fix="compile it with rules that find sites, or with `train:`",
            code="export/tasks",
        )
    taken = {v.name for v in graph.inputs} | {out.name for node in graph.all_nodes() for out in node.outputs}
    found: list[Live] = []
    for value in front:
        made_of = _sources_of(value, set(sources))
        name = free_name(str(made_of[0].name), taken | {one.name for one in found})
        found.append(Live(name, tuple(str(s.name) for s in made_of), value.shape is not None and not len(value.shape)))
    builder = _builder(model, sources, body, constant, list(zip(found, front, strict=True)), varying)
    for one, value in zip(found, front, strict=True):
        _replace(graph, value, one, inner)
    for node in reversed(body):
        graph.remove(node, safe=True)
    for source in sources:
        graph.initializers.pop(str(source.name), None)
    return tuple(found), builder


def _above(graph: ir.Graph, sources: Sequence[ir.Value]) -> tuple[list[ir.Node], set[ir.Value], set[ir.Value]]:
    """The nodes that compute with trained tensors and constants alone; their values; and the values of constants."""
    live, body = set(sources), []
    constant = set(graph.initializers.values()) - live
    for node in list(graph):
        if any(v is not None and v not in live and v not in constant for v in node.inputs) or _has_graphs(node):
            continue
        is_live = any(v in live for v in node.inputs)
        if is_live and node.op_type in _SHAPES:
            _replace_by_shape(graph, node, constant)
            continue
        (live if is_live else constant).update(node.outputs)
        if is_live:
            body.append(node)
    return body, live, constant


def _keep_leading_sizes(graph: ir.Graph, body: Sequence[ir.Node], varying: Mapping[str, object]) -> None:
    """`[r, in, k, k]` as `[r, in·k·k]`: the first size is that of the operand, and no constant of the trace."""
    for node in body if varying else ():
        value, made = node.inputs[0], node.outputs[0]
        if node.op_type != "Reshape" or value is None or value.shape is None or made.shape is None:
            continue
        equal = [a == b for a, b in zip(value.shape, made.shape, strict=False)]
        count = equal.index(False) if False in equal else len(equal)
        sizes = [size for size in made.shape if isinstance(size, int)]
        if count and len(sizes) == len(made.shape) and 0 not in sizes:
            numbers = np.array([0] * count + sizes[count:], np.int64)
            node.replace_input_with(1, initializer(graph, numbers, f"{made.name}.sizes"))
            node.attributes.pop("allowzero", None)  # 0 is the size of the operand


def _has_graphs(node: ir.Node) -> bool:
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def _replace_by_shape(graph: ir.Graph, node: ir.Node, constant: set[ir.Value]) -> None:
    """The shape of a trained tensor is a constant, whatever its values are."""
    value = node.inputs[0]
    assert value is not None
    assert value.shape is not None
    shape = [size for size in value.shape if isinstance(size, int)]
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(shape))
    numbers = np.array(shape[start:end] if node.op_type == "Shape" else int(np.prod(shape)), np.int64)
    name = f"{node.outputs[0].name}.known"
    made = initializer(graph, numbers, name)
    ir.convenience.replace_all_uses_with(node.outputs[0], made)
    graph.remove(node, safe=True)
    constant.add(made)


def initializer(graph: ir.Graph, values: np.ndarray, name: str) -> ir.Value:
    """A constant of a graph; the one that is there where it has the name already."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.tensor(values, name=name)
    value = ir.Value(name=name, shape=ir.Shape(values.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _sources_of(value: ir.Value, sources: set[ir.Value]) -> list[ir.Value]:
    """The trained tensors of which a value is made, the nearest of the first operand first."""
    if value in sources:
        return [value]
    node = value.producer()
    found: dict[ir.Value, None] = {}
    for operand in node.inputs if node is not None else ():
        if operand is not None:
            found |= dict.fromkeys(_sources_of(operand, sources))
    return list(found)


def _builder(
    model: ir.Model,
    sources: Sequence[ir.Value],
    body: Sequence[ir.Node],
    constant: set[ir.Value],
    front: Sequence[tuple[Live, ir.Value]],
    varying: Mapping[str, Sequence[str | None]],
) -> ir.Model:
    copies = _Copies(constant)
    inputs = [copies.input(value, varying.get(str(value.name))) for value in sources]
    nodes = [copies.node(node) for node in body]
    outputs = []
    ends = []
    for live, value in front:
        end = ir.node("Identity", [copies.of[value]])
        end.outputs[0].name = LIVE + live.name
        end.outputs[0].type = value.type
        ends.append(end)
        outputs.append(end.outputs[0])
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=[*copies.made, *nodes, *ends],
        initializers=copies.initializers,
        opset_imports=dict(model.graph.opset_imports),
        name="builder",
    )
    return ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))


class _Copies:
    """Copies of values and nodes for another graph; constants that they read follow."""

    def __init__(self, constant: set[ir.Value]) -> None:
        self.of: dict[ir.Value, ir.Value] = {}
        self.made: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self._constant = constant

    def input(self, value: ir.Value, names: Sequence[str | None] | None) -> ir.Value:
        assert value.shape is not None
        shape = ir.Shape(
            [name or size for name, size in zip(names or [None] * len(value.shape), value.shape, strict=True)]
        )
        made = ir.Value(name=value.name, shape=shape, type=value.type)
        self.of[value] = made
        return made

    def value(self, value: ir.Value | None) -> ir.Value | None:
        if value is None or value in self.of:
            return None if value is None else self.of[value]
        producer = value.producer()
        if producer is not None:
            self.made.append(self.node(producer))
            return self.of[value]
        made = ir.Value(name=value.name, shape=value.shape, type=value.type, const_value=value.const_value)
        self.of[value] = made
        self.initializers.append(made)
        return made

    def node(self, node: ir.Node) -> ir.Node:
        inputs = [self.value(v) for v in node.inputs]
        made = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(node.attributes.values()),
            overload=node.overload,
            num_outputs=len(node.outputs),
        )
        for old, new in zip(node.outputs, made.outputs, strict=True):
            new.name, new.type = old.name, old.type
            self.of[old] = new
        return made


def _replace(graph: ir.Graph, value: ir.Value, live: Live, inner: set[ir.Node]) -> None:
    """Let the data's side of the cut read an input."""
    made = ir.Value(name=live.name, shape=ir.Shape([1]) if live.is_scalar else value.shape, type=value.type)
    graph.inputs.append(made)
    read = made
    if live.is_scalar:
        node = ir.node("Squeeze", [made, initializer(graph, np.array([0], np.int64), "live.axis")])
        read = node.outputs[0]
        read.name, read.type, read.shape = f"{live.name}.scalar", value.type, ir.Shape([])
        graph.insert_before(graph[0], node)
    for use in list(value.uses()):
        if use.node not in inner:
            use.node.replace_input_with(use.idx, read)


def set_defaults(model: ir.Model, values: Mapping[str, np.ndarray]) -> None:
    """Give the inputs of the frontier their defaults; the last step, after every optimiser."""
    graph = model.graph
    for value in graph.inputs:
        if value.name is not None and value.name in values:
            value.const_value = ir.tensor(np.ascontiguousarray(values[value.name]), name=value.name)
            graph.register_initializer(value)


def without_reader(model: ir.Model, names: Iterable[str]) -> list[str]:
    """The inputs that nothing reads."""
    found = {value.name: value for value in model.graph.inputs}
    return [name for name in names if not found[name].uses() and not found[name].is_graph_output()]
