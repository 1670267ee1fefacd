"""A graph as text, for people to read and compare: one line per node, the same in every version of torch.

    block_add = add(stem, block_conv)  [B, 8c, 4, 4]  @block
    add = add(block_add, tuner)  [B, 8c, 4, 4]  sum of mha/block/0

A line gives the node's name, its canonical operation with what it reads, its shape (`c` marks the channels; a dtype
other than float32 follows), and its provenance: the module path it was recorded in, or the role that it plays for a
site. Neither source lines nor addresses nor defaults are shown.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

import torch
from torch import fx

from utcompile.graph.meta import place_of, value_of
from utcompile.graph.node_info import info
from utcompile.graph.operations import Operation, operation
from utcompile.graph.value import Value
from utcompile.graph.view import GraphView

_USUAL: Mapping[str, object] = {
    "alpha": 1,
    "beta": 1,
    "dilation": 1,
    "dropout_p": 0.0,
    "end_dim": -1,
    "eps": 1e-5,
    "groups": 1,
    "momentum": 0.1,
    "norm_type": 2.0,
    "output_padding": 0,
    "padding": 0,
    "padding_mode": "zeros",
    "start": 0,
    "step": 1,
    "stride": 1,
    "approximate": "none",
}
_SEEN_IN_WEIGHTS = frozenset(
    "in_channels out_channels in_features out_features num_embeddings embedding_dim normalized_shape "
    "kernel_size".split()
)


def show(module: fx.GraphModule) -> str:
    """A captured, tuned or folded graph as text.

    Example:
        >>> import utcompile as utc
        >>> from torch import nn
        >>> print(show(utc.capture(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), torch.ones(3, 4))))
        input_1 = placeholder()  [B, 4c]
        check_fixed_sizes = FixedSizes(input_1)
        _0 = linear(input_1, weight[2, 4], bias[2])  [B, 2c]  @0
        _1 = relu(_0)  [B, 2c]  @1
        output = output(_1)
    """
    axes = GraphView(module.graph, module).channel_axis
    held = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    shapes = {name: tuple(tensor.shape) for name, tensor in held}
    return "\n".join(_line(node, operation(node, module), axes.get(node), shapes) for node in module.graph.nodes)


def show_changes(before: str, after: str) -> str:
    """The lines that one text has and the other has not, each with the line before and after it."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=1, lineterm="")
    shown = ["…" if line.startswith("@@") else line.rstrip() for line in lines][2:]
    return "\n".join(shown) or "as before"


def _line(node: fx.Node, op: Operation, axis: int | None, shapes: Mapping[str, tuple[int, ...]]) -> str:
    call = f"{node.name} = {_called(op)}({', '.join(_arguments(node, op, shapes))})"
    return "  ".join(filter(None, (call, _value(node, axis), _provenance(node))))


def _called(op: Operation) -> str:
    """The canonical name; for our own classes, the class name alone."""
    return op.name.rpartition(".")[2] if op.name.startswith("utcompile.") else op.name


def _arguments(node: fx.Node, op: Operation, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    if node.op in ("placeholder", "get_attr"):
        yield from [str(node.target)] if node.op == "get_attr" else []
        return
    if node.op == "output":
        yield _written(node.args[0])
        return
    if "." in op.name and node.op == "call_function":  # in no row of the table: as it is called
        yield from map(_written, node.args)
        yield from (f"{name}={_written(value)}" for name, value in node.kwargs.items())
        return
    yield from (n.name for n in op.inputs)
    for role, name in op.parameters.items():
        here = node.op == "call_module" and name == f"{node.target}.{role}"
        yield f"{role if here else f'{role}={name}'}{list(shapes[name]) if name in shapes else ''}"
    for name, value in op.attributes.items():
        if name not in _SEEN_IN_WEIGHTS and not _is_usual(name, value):
            yield f"{name}={_written(value)}"
    if node.op == "call_module" and op.name.startswith("utcompile."):
        yield str(node.target)


def _is_usual(name: str, value: object) -> bool:
    if value is None or value is False:
        return True
    usual = _USUAL.get(name)
    return usual is not None and all(v == usual for v in (value if isinstance(value, tuple) else (value,)))


def _written(value: object) -> str:
    """A value of a call as text: nodes by name, containers by their items."""
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(_written, value)) + ")"
    if isinstance(value, slice):
        return ":".join("" if v is None else _written(v) for v in (value.start, value.stop, value.step)).removesuffix(
            ":"
        )
    if value is Ellipsis:
        return "..."
    if callable(value):
        return str(getattr(value, "__name__", type(value).__name__))
    return str(value).removeprefix("torch.")


def _value(node: fx.Node, axis: int | None) -> str:
    value = value_of(node)
    if value is None:
        size = info(node).size
        return "" if size is None else f"{size}"
    dims = [f"{dim}{'c' * (i == axis)}" for i, dim in enumerate(value.shape)]
    return f"[{', '.join(dims)}]{_dtype(value)}"


def _dtype(value: Value) -> str:
    return "" if value.dtype is torch.float32 else f" {_written(value.dtype)}"


def _provenance(node: fx.Node) -> str:
    role, site = info(node).role, info(node).site
    if role is not None:
        return f"{role} of {site}" if site is not None else str(role)
    place = place_of(node)
    return f"@{place}" if place else ""
