"""RMSNorm and LayerNorm that a model spells out, recognised from their mean of squares or their variance.

With u the value that is squared, r = 1 / sqrt(mean(u²) + ε) and the statistics taken over the same axes:

1. `u · r`, or `u / sqrt(mean(u²) + ε)`, is `rms_norm(u)`;
2. where u = x - mean(x), or the variance of x is taken at once, it is `layer_norm(x)`;
3. a parameter that the result is multiplied by, and one that is added after it, belong to the norm, whether they are
   used as they are or, as Gemma does, as `1 + weight`; only the first kind is listed as the norm's `weight` and `bias`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from utcompile.graph.meta import value_of
from utcompile.graph.operations import Operation, is_state
from utcompile.ops import Trait, having

_Operations = Mapping[fx.Node, Operation]
_CASTS = having(Trait.SAME)


def spelled_norm(statistic: fx.Node, operations: _Operations) -> tuple[fx.Node, Operation] | None:
    """The node that ends the norm whose `mean` of squares, or `var`, is given, and how it reads; None where it is none.

    Args:
        statistic: a node whose operation is `mean` or `var`.
        operations: how each node reads alone.
    """
    dims = _dims(statistic, operations)
    source = _deviation(statistic, operations)
    if dims is None or source is None:
        return None
    end = _divided(statistic, source, operations)
    if end is None:
        return None
    node, eps = end
    centred = _centred_on(source, dims, operations)
    if operations[statistic].name == "var" and centred is None:
        return None  # a variance without the mean taken off normalises nothing that has a name
    name, data = ("layer_norm", centred) if centred is not None else ("rms_norm", source)
    parameters: dict[str, str] = {}
    for role, by in (("weight", "mul"), ("bias", "add")):
        scaled = _with_parameter(node, by, operations)
        if scaled is None or (role == "bias" and name == "rms_norm"):
            break
        node, state = scaled
        if state is not None:
            parameters[role] = state
    rank = value_of(statistic).rank  # type: ignore[union-attr]  # a mean is a tensor
    attributes: dict[str, object] = {"eps": eps, "spelled_out": True}
    if max(dims) != rank - 1:
        attributes["dim"] = dims  # LayerNorm of (B, C, H, W) over C
    return node, Operation(name, (_uncast(data, operations),), attributes, parameters)


def _dims(node: fx.Node, operations: _Operations) -> tuple[int, ...] | None:
    """The axes of a statistic that keeps them, counted from the front."""
    value, source = value_of(node), next(iter(node.all_input_nodes), None)
    given = _argument(node, operations, "dim", 1)
    if value is None or source is None or (before := value_of(source)) is None or before.rank != value.rank:
        return None
    dims = given if isinstance(given, (tuple, list)) else (given,)
    if not dims or not all(isinstance(d, int) for d in dims):
        return None
    return tuple(sorted(int(d) % value.rank for d in dims))


def _argument(node: fx.Node, operations: _Operations, name: str, place: int) -> object:
    known: object = operations[node].attributes.get(name, node.kwargs.get(name))
    return node.args[place] if known is None and len(node.args) > place else known


def _deviation(node: fx.Node, operations: _Operations) -> fx.Node | None:
    """The value that is squared under a mean; for a variance the difference from the mean."""
    if not operations[node].inputs:
        return None
    inner = operations[node].inputs[0]
    op = operations[inner]
    if operations[node].name == "var":
        return next(
            (u for u in inner.users if operations[u].name == "sub" and operations[u].inputs[:1] == (inner,)), None
        )
    if op.name == "square" or (op.name == "pow" and op.attributes.get("exponent") == 2 and op.inputs):
        return op.inputs[0]
    if op.name == "mul" and len(op.inputs) == 2 and op.inputs[0] is op.inputs[1]:
        return op.inputs[0]
    return None


def _divided(node: fx.Node, source: fx.Node, operations: _Operations) -> tuple[fx.Node, float] | None:
    """`source / sqrt(statistic + ε)` in any spelling, with its ε."""
    eps, inverse = 0.0, False
    for _ in range(4):
        readers = list(node.users)
        if len(readers) != 1:
            return None
        (reader,) = readers
        op = operations[reader]
        if op.name in ("mul", "div") and len(op.inputs) == 2:
            wanted = "mul" if inverse else "div"
            others = [n for n in op.inputs if n is not node]
            right_way = op.name == wanted and (op.name == "mul" or op.inputs[1] is node)
            same = bool(others) and _uncast(others[0], operations) is _uncast(source, operations)
            return (reader, eps) if right_way and same else None
        if op.name == "add" and len(op.inputs) == 1 and isinstance(op.attributes.get("other"), (int, float)):
            eps = float(op.attributes["other"])
        elif op.name == "rsqrt" or (op.name == "pow" and op.attributes.get("exponent") == -0.5):
            inverse = True
        elif (
            op.name not in _CASTS
            and op.name != "sqrt"
            and not (op.name == "pow" and op.attributes.get("exponent") == 0.5)
        ):
            return None
        node = reader
    return None


def _uncast(node: fx.Node, operations: _Operations) -> fx.Node:
    while operations[node].name in _CASTS and operations[node].inputs:
        node = operations[node].inputs[0]
    return node


def _centred_on(source: fx.Node, dims: tuple[int, ...], operations: _Operations) -> fx.Node | None:
    """x, where the source is `x - mean(x)` over the same axes."""
    op = operations[_uncast(source, operations)]
    if op.name != "sub" or len(op.inputs) != 2:
        return None
    data, mean = op.inputs
    if operations[mean].name != "mean" or _dims(mean, operations) != dims:
        return None
    averaged = operations[mean].inputs[0]
    return data if _uncast(averaged, operations) is _uncast(data, operations) else None


def _with_parameter(node: fx.Node, by: str, operations: _Operations) -> tuple[fx.Node, str | None] | None:
    """The product (or sum) of a node, or of a cast of it, with a parameter, and the parameter's name."""
    for _ in range(3):
        readers = list(node.users)
        if len(readers) != 1:
            return None
        (reader,) = readers
        op = operations[reader]
        if op.name == by and len(op.inputs) == 1 and op.parameters:
            state = next(a for a in reader.all_input_nodes if is_state(a))
            return reader, _plain_name(state, operations)
        if op.name not in _CASTS and op.name != "reshape":  # Mamba-2 norms groups of channels
            return None
        node = reader
    return None


def _plain_name(state: fx.Node, operations: _Operations) -> str | None:
    """The parameter that a state node is, through casts and reshapes; None where it is computed (`1 + weight`)."""
    while state.op != "get_attr":
        name = operations[state].name
        if (name not in _CASTS and name not in ("reshape", "getitem", "expand")) or len(state.all_input_nodes) != 1:
            return None
        state = state.all_input_nodes[0]
    return str(state.target)
