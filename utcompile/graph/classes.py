"""Classes of operations: words of a pattern that mean several canonical names."""

from __future__ import annotations

from collections.abc import Callable
from types import EllipsisType

from torch import fx

from utcompile.graph.meta import value_of
from utcompile.graph.node_info import info
from utcompile.graph.operations import ACTIVATIONS, Operation, is_state
from utcompile.graph.state import is_parameter
from utcompile.graph.walk import ancestors
from utcompile.ops import Trait, having

_CONVS = having(Trait.CONV)
_CONVS_TRANSPOSED = having(Trait.CONV_TRANSPOSE)
_CUTS = having(Trait.CUTS)
_DROPOUT = having(Trait.DROPOUT)
_LAYOUT = having(Trait.LAYOUT)
_NORMS = having(Trait.NORM)
_POOLS = having(Trait.POOL)
_RESAMPLES = having(Trait.RESAMPLE)


def is_slice(op: Operation) -> bool:
    """Whether an indexing keeps every dimension: `x[:, :h]` and `x[:, None]`, but not `x[:, 0]`."""
    index = op.attributes.get("index", 0)
    parts = index if isinstance(index, tuple) else (index,)
    return op.name == "getitem" and all(p is None or isinstance(p, (slice, EllipsisType)) for p in parts)


def is_layout(node: fx.Node, op: Operation) -> bool:
    """Whether a node only moves one tensor's numbers: reshape, permute, roll, flip, crop, zero padding, identity."""
    if (
        value_of(node) is None or not op.inputs or (len(op.inputs) > 1 and op.name not in ("to", "reshape"))
    ):  # type_as, view_as
        return False
    if op.name == "pad":  # a reflected border repeats numbers
        return op.attributes.get("mode", "constant") == "constant"
    return op.name in _LAYOUT or is_slice(op)


def is_dropout(node: fx.Node, op: Operation) -> bool:
    """Dropout; an identity at inference."""
    return op.name in _DROPOUT


def is_pool(node: fx.Node, op: Operation) -> bool:
    """A pooling, or a mean over two or more dimensions (a global average)."""
    dims = op.attributes.get("dim")
    return op.name in _POOLS or (op.name == "mean" and isinstance(dims, (tuple, list)) and len(dims) > 1)


def _depthwise(node: fx.Node, op: Operation) -> bool:
    if op.name not in _CONVS or not op.inputs:
        return False
    value = value_of(op.inputs[0])
    groups = op.attributes["groups"]
    return value is not None and groups > 1 and groups == value.shape[1]


def _linear(node: fx.Node, op: Operation) -> bool:
    """A linear in any spelling: a product of one value and a parameter that is a matrix, on either side."""
    if op.name == "linear":
        return True
    if op.name not in ("matmul", "addmm") or len(op.inputs) != 1:
        return False
    weights = [n for n in node.all_input_nodes if is_state(n) and _rank(n) == 2]
    return len(weights) == 1 and _is_made_of_parameters(weights[0])


def _rank(node: fx.Node) -> int | None:
    value = value_of(node)
    return value.rank if value is not None else None


def _is_made_of_parameters(node: fx.Node) -> bool:
    """Whether a state node reads a parameter; a table that the model keeps in a buffer is a fixed transform."""
    module = node.graph.owning_module
    reads = (str(n.target) for n in ancestors([node]) if n.op == "get_attr")
    return any(module is None or is_parameter(module, name) for name in reads)


def _pointwise(node: fx.Node, op: Operation) -> bool:
    if op.name == "linear":
        return True
    if op.name in ("matmul", "addmm"):  # x @ weight, as GPT-2 and Falcon write their linears
        nodes = node.all_input_nodes
        last = value_of(nodes[-1]) if nodes else None
        return len(op.inputs) == 1 and is_state(nodes[-1]) and last is not None and last.rank == 2
    return op.name in _CONVS and op.attributes["groups"] == 1 and _unit_kernel(node, op)


def _spatial(node: fx.Node, op: Operation) -> bool:
    return op.name in _CONVS and not _unit_kernel(node, op) and not _depthwise(node, op)


def _unit_kernel(node: fx.Node, op: Operation) -> bool:
    shape = info(node).weight_shape
    return len(shape) > 2 and all(k == 1 for k in shape[2:])


CLASSES: dict[str, Callable[[fx.Node, Operation], bool]] = {
    "conv": lambda node, op: op.name in _CONVS,
    "depthwise_conv": _depthwise,
    "spatial_conv": _spatial,
    "conv_transpose": lambda node, op: op.name in _CONVS_TRANSPOSED,
    "linear": _linear,
    "pointwise": _pointwise,
    "activation": lambda node, op: op.name in ACTIVATIONS,
    "norm": lambda node, op: op.name in _NORMS,
    "dropout": is_dropout,
    "pool": is_pool,
    "layout": is_layout,
    "split": lambda node, op: op.name in _CUTS,
    "resample": lambda node, op: op.name in _RESAMPLES,
}
