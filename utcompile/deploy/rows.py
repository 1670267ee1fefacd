"""Tasks by rows: each input of the frontier becomes a stack `[tasks, …]`, of which every row of a batch takes its own.

A reader of a value is lifted: it reads `[batch, …]` instead. A matrix product becomes a batched one; what a
convolution of k×k does with a row's own kernel is one product per tap at every pixel, and one frozen convolution with a
one-hot kernel that moves and adds the taps. An operation that has no such form is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from utcompile.deploy.axes import BATCH
from utcompile.deploy.clean import free_name
from utcompile.deploy.frontier import initializer
from utcompile.deploy.task_files import Stack, TaskFile
from utcompile.errors import UtcError

SELECTOR = "task"
_FILLS = {"Add": -np.inf, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}  # for classes that a task lacks
Values = Mapping[str, np.ndarray]


def route_rows(model: ir.Model, known: TaskFile, rows: Sequence[Values]) -> dict[str, Stack]:
    """Let every row of a batch read its own values; the graph is changed in place.

    Args:
        rows: the values of each task; the first are those without a task.

    Returns:
        The stacks of the file, by the names of their initialisers.

    Raises:
        UtcError: an operation has no form with rows.
    """
    return _Router(model, known, rows).route()


def stacked(stack: Stack, rows: Sequence[np.ndarray]) -> np.ndarray:
    """The values of tasks as one array, each transposed, padded and shaped as the stack has it."""
    return np.ascontiguousarray(np.stack([_row(stack, value) for value in rows]))


def _row(stack: Stack, value: np.ndarray) -> np.ndarray:
    if stack.padded is not None:
        widths = [(0, size - own) for size, own in zip(stack.padded, value.shape, strict=True)]
        value = np.pad(value, widths, constant_values=-np.inf if stack.fill is None else stack.fill)
    if stack.taps is not None:
        out, channels = value.shape[:2]
        value = value.reshape(out, channels, stack.taps).transpose(0, 2, 1)
    if stack.perm is not None:
        value = value.transpose(stack.perm)
    return value.reshape(stack.shape)


class _Router:
    def __init__(self, model: ir.Model, known: TaskFile, rows: Sequence[Values]) -> None:
        declared = [value.shape for value in model.graph.outputs]
        ShapeInferencePass()(model)  # inner values have the module's own number of classes
        for value, shape in zip(model.graph.outputs, declared, strict=True):
            value.shape = shape
        self.graph, self.known, self.rows = model.graph, known, rows
        self.live = {v: v.name for v in self.graph.inputs if v.name in known.inputs}
        taken = {v.name for v in self.graph.inputs} | {o.name for n in self.graph.all_nodes() for o in n.outputs}
        self.selector = ir.Value(
            name=free_name(SELECTOR, taken), shape=ir.Shape([BATCH]), type=ir.TensorType(ir.DataType.INT64)
        )
        self.stacks: dict[str, Stack] = {}
        self._made: dict[object, ir.Value] = {}
        self._count = 0

    def route(self) -> dict[str, Stack]:
        graph = self.graph
        for value in self.live:
            graph.inputs.remove(value)
        graph.inputs.append(self.selector)
        self._drop_scalars()
        for node in list(graph.all_nodes()):
            at = [i for i, v in enumerate(node.inputs) if v in self.live]
            if at:
                self._lift(node, at)
        self._check_classes()
        return self.stacks

    def _drop_scalars(self) -> None:
        """A value of size 1 needs no squeezing: elementwise operations take it as it is."""
        for value in self.live:
            for use in list(value.uses()):
                if use.node.op_type == "Squeeze":
                    ir.convenience.replace_all_uses_with(use.node.outputs[0], value)
                    self.graph.remove(use.node, safe=True)

    def _lift(self, node: ir.Node, at: list[int]) -> None:
        lifts: dict[str, Callable[[ir.Node, list[int]], ir.Value | None]] = {
            **dict.fromkeys(_FILLS, self._elementwise),
            "MatMul": self._matmul,
            "Gemm": self._gemm,
            "Conv": self._conv,
            "Expand": self._expand,
            "LayerNormalization": self._norm,
            "RMSNormalization": self._norm,
            "BatchNormalization": self._norm,
            "InstanceNormalization": self._norm,
        }
        if node.graph is not self.graph or node.op_type not in lifts:
            raise self._refusal(node, at, "the operation has no form in which every row has its own")
        made = lifts[node.op_type](node, at)
        if made is not None:
            old = node.outputs[0]
            made.shape, made.type = old.shape, old.type
            name = old.name
            ir.convenience.replace_all_uses_with(old, made, replace_graph_outputs=True)
            self.graph.remove(node, safe=True)
            made.name = name

    # --- the forms -----------------------------------------------------------------------------------------------

    def _elementwise(self, node: ir.Node, at: list[int]) -> None:
        (index,) = at
        other = node.inputs[1 - index]
        rank = self._rank(node, other, at)
        shape = self._padded(node, at, node.inputs[index], rank)
        row = self._gathered(node, node.inputs[index], shape[1:], fill=_FILLS[node.op_type])
        node.replace_input_with(index, row)

    def _matmul(self, node: ir.Node, at: list[int]) -> ir.Value | None:
        (index,) = at
        value, other = node.inputs[index], node.inputs[1 - index]
        rank, shape = self._rank(node, other, at), self._shape(value)
        if len(shape) != 2:
            raise self._refusal(node, at, f"a weight of {len(shape)} dimensions in a matrix product")
        if rank >= 3:
            lifted = [1] * (rank - 3) + shape
            node.replace_input_with(index, self._gathered(node, value, lifted, fill=0))
            return None
        if index == 0 or rank < 2:
            raise self._refusal(node, at, "a product with a matrix that has no row per sample")
        return self._product(node, other, self._gathered(node, value, shape, fill=0))

    def _product(self, node: ir.Node, x: ir.Value | None, weight: ir.Value) -> ir.Value:
        """`x[batch, in] @ weight[batch, in, out]`."""
        lifted = self._put(node, "Unsqueeze", [x, self._numbers([1])])
        return self._put(node, "Squeeze", [self._put(node, "MatMul", [lifted, weight]), self._numbers([1])])

    def _gemm(self, node: ir.Node, at: list[int]) -> ir.Value:
        read = node.attributes
        plain = read.get_float("alpha", 1.0) == 1 and read.get_float("beta", 1.0) == 1 and not read.get_int("transA", 0)
        x, weight, bias = node.inputs[0], node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        if not plain or 0 in at:
            raise self._refusal(node, at, "a product with factors, or of a transposed input")
        self._rank(node, x, at)
        transposed = read.get_int("transB", 0)
        if weight in self.live:
            shape = self._shape(weight)
            row = self._gathered(
                node, weight, shape[::-1] if transposed else shape, perm=[1, 0] if transposed else None, fill=0
            )
            made = self._product(node, x, row)
        else:
            made = self._put(node, "Gemm", [x, weight], {"transB": transposed})
        if bias is None:
            return made
        if bias in self.live:
            bias = self._gathered(node, bias, self._shape(bias)[-1:], fill=-np.inf)
        return self._put(node, "Add", [made, bias])

    def _conv(self, node: ir.Node, at: list[int]) -> ir.Value:
        x, weight, bias = node.inputs[0], node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        rank = self._rank(node, x, at)
        if 0 in at or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            raise self._refusal(node, at, "a convolution that pads by itself")
        settings = {k: a.value for k, a in node.attributes.items() if k in ("strides", "pads", "dilations", "group")}
        if weight in self.live:
            if node.attributes.get_int("group", 1) != 1:
                raise self._refusal(node, at, "a grouped or depthwise convolution, whose weight is the task's")
            made = self._taps(node, x, weight, settings, rank)
        else:
            made = self._put(node, "Conv", [x, weight], settings)
        if bias is None:
            return made
        ones = [1] * (rank - 2)
        if bias in self.live:
            row = self._gathered(node, bias, [*self._shape(bias), *ones], fill=-np.inf)
        else:
            assert bias.const_value is not None
            row = initializer(self.graph, bias.const_value.numpy().reshape(-1, *ones), f"{bias.name}.channels")
        return self._put(node, "Add", [made, row])

    def _taps(
        self, node: ir.Node, x: ir.Value | None, weight: ir.Value | None, settings: dict[str, object], rank: int
    ) -> ir.Value:
        out, channels, *kernel = self._shape(weight)
        count = prod(kernel)
        row = self._gathered(node, weight, [out * count, channels], taps=count, fill=0)
        flat = self._put(node, "Reshape", [x, self._numbers([0, channels, -1])])
        product = self._put(node, "MatMul", [row, flat])
        # batch and places as x has them; the channels are those of the product
        ends = [self._put(node, "Shape", [x], {"start": s, "end": e}) for s, e in ((0, 1), (2, rank))]
        places = self._put(node, "Concat", [ends[0], self._numbers([out * count]), ends[1]], {"axis": 0})
        moved = self._put(node, "Reshape", [product, places])
        plain = {
            "strides": [1] * (rank - 2),
            "dilations": [1] * (rank - 2),
            "pads": [0] * 2 * (rank - 2),
        }
        if count == 1 and all(list(settings.get(k, v)) == v for k, v in plain.items()):  # type: ignore[call-overload]
            return moved
        hot = np.zeros((out, count, *kernel), np.float32)
        for i in range(count):
            hot.reshape(out, count, count)[:, i, i] = 1
        name = f"taps.{out}x{'x'.join(map(str, kernel))}"
        return self._put(node, "Conv", [moved, initializer(self.graph, hot, name)], {**settings, "group": out})

    def _expand(self, node: ir.Node, at: list[int]) -> ir.Value:
        value, shape = node.inputs[0], node.outputs[0].shape
        if at != [0] or shape is None or _text(shape[0]) != BATCH:
            raise self._refusal(node, at, "it is not repeated along the batch")
        own = self._shape(value)
        own = own[1:] if len(own) == len(shape) and own[0] == 1 else own
        if [_text(size) for size in list(shape)[1:]] != [str(size) for size in own]:
            raise self._refusal(node, at, "it is repeated along other dimensions than the batch")
        return self._put(node, "Identity", [self._gathered(node, value, own, fill=0)])

    def _norm(self, node: ir.Node, at: list[int]) -> ir.Value:
        x, op = node.inputs[0], node.op_type
        rank = self._rank(node, x, at)
        is_last = op in ("LayerNormalization", "RMSNormalization")
        operands, after = list(node.inputs), list[tuple[str, ir.Value]]()
        for index, (fill, name) in ((1, (1.0, "ones")), (2, (0.0, "zeros"))):
            value = operands[index] if index < len(operands) else None
            if value is None or (index == 1 and 1 not in at):
                continue
            size = self._shape(value)
            operands[index] = initializer(
                self.graph, np.full(size, fill, np.float32), f"{name}.{'x'.join(map(str, size))}"
            )
            lifted = [1] * (rank - 1 - len(size)) + size if is_last else size + [1] * (rank - 2)
            row = self._gathered(node, value, lifted, fill=0) if index in at else self._constant(value, lifted)
            after.append(("Mul" if index == 1 else "Add", row))
        if max(at) > 2:
            raise self._refusal(node, at, "the statistics of a norm are the task's")
        made = self._put(node, op, operands, {k: a.value for k, a in node.attributes.items()})
        for kind, row in after:
            made = self._put(node, kind, [made, row])
        return made

    # --- what the forms are made of ------------------------------------------------------------------------------

    def _constant(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        assert value.const_value is not None
        return initializer(self.graph, value.const_value.numpy().reshape(shape), f"{value.name}.lifted")

    def _gathered(
        self,
        node: ir.Node,
        value: ir.Value | None,
        shape: Sequence[int],
        *,
        perm: list[int] | None = None,
        taps: int | None = None,
        fill: float,
    ) -> ir.Value:
        """The rows of a value, `[batch, *shape]`."""
        assert value is not None
        live = self.live[value]
        assert live is not None
        key = (live, tuple(shape), tuple(perm or ()), taps, fill)
        if key not in self._made:
            axes = {size for size in self.known.inputs[live].shape if isinstance(size, str)}
            if fill == -np.inf and axes <= set(self.known.widths):
                fill = 0  # what a task lacks inside of a tuner changes nothing; only a class that it lacks is -inf
            name = free_name(live, set(self.graph.initializers))
            stack = Stack(
                live=live,
                perm=perm,
                shape=list(shape),
                taps=taps,
                padded=self._shape(value) if axes else None,
                fill=None if fill == -np.inf else fill,
            )
            made = initializer(self.graph, stacked(stack, [row[live] for row in self.rows]), name)
            self.stacks[name] = stack
            gathered = ir.node("Gather", [made, self.selector], attributes={"axis": 0})
            gathered.outputs[0].name = f"{name}.rows"
            self.graph.insert_before(self.graph[0], gathered)
            self._made[key] = gathered.outputs[0]
        return self._made[key]

    def _put(
        self,
        before: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, object] | None = None,
    ) -> ir.Value:
        node = ir.node(op, inputs, attributes=dict(attributes or {}))  # type: ignore[arg-type]
        self._count += 1
        node.outputs[0].name = f"row.{self._count}.{op}"
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def _numbers(self, values: Sequence[int]) -> ir.Value:
        return initializer(self.graph, np.array(values, np.int64), f"numbers.{'.'.join(map(str, values))}")

    def _shape(self, value: ir.Value | None) -> list[int]:
        """The shape of a value of the frontier, with all classes that there are."""
        assert value is not None
        name = self.live.get(value)
        if name is None:
            assert value.shape is not None
            return [size for size in value.shape if isinstance(size, int)]
        return [int(max(sizes)) for sizes in zip(*(row[name].shape for row in self.rows), strict=True)]

    def _rank(self, node: ir.Node, value: ir.Value | None, at: list[int]) -> int:
        """The number of dimensions of data, of which the first must be the batch."""
        if value is None or value.shape is None or not len(value.shape) or _text(value.shape[0]) != BATCH:
            shown = "unknown" if value is None or value.shape is None else ", ".join(map(_text, value.shape))
            raise self._refusal(node, at, f"what it is computed with is of shape ({shown}), not one row per sample")
        return len(value.shape)

    def _padded(self, node: ir.Node, at: list[int], value: ir.Value | None, rank: int) -> list[int]:
        shape = self._shape(value)
        padded = [1] * (rank - len(shape)) + shape
        if len(padded) != rank or padded[0] != 1:
            raise self._refusal(node, at, f"a value of shape {shape} does not belong to one sample")
        return padded

    def _check_classes(self) -> None:
        """Classes that a task lacks must have the logit -inf, which a head without a bias cannot give."""
        for axis in {axis for names in self.known.outputs.values() for axis in names if axis is not None}:
            heads = [stack for stack in self.stacks.values() if axis in self.known.inputs[stack.live].shape]
            counts = {
                row[stack.live].shape[self.known.inputs[stack.live].shape.index(axis)]
                for stack in heads
                for row in self.rows
            }
            if len(counts) > 1 and all(stack.fill is not None for stack in heads):
                raise UtcError(
                    f"the tasks have {' and '.join(map(str, sorted(counts)))} classes, and the head has no bias",
                    why="a class that a task lacks would have the logit 0",
                    fix="export with routing='call'",
                    code="export/tasks",
                )

    def _refusal(self, node: ir.Node, at: list[int], why: str) -> UtcError:
        found = [self.live.get(v) for v in node.inputs if v is not None and v in self.live]
        return UtcError(
            f"{found[0] if found else node.name} has no form per row: it is read by {node.op_type}",
            why=why,
            fix="export with routing='call', where OnnxModel groups the rows of a batch by task; or use rules with "
            "linear adapters, `how: branch`, biases or heads",
            code="export/tasks",
        )


def _text(size: object) -> str:
    """A size, or the name of its axis."""
    return str(getattr(size, "value", size))
