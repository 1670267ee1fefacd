"""A leaf module's call as a function call of the same numbers, with its parameters as arguments, and back again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from utcompile.errors import UtcError
from utcompile.graph import (
    Role,
    describe,
    function_of,
    info,
    inserted,
    module_operation,
    more_than_its_class,
    value_of,
)
from utcompile.ops import Trait, having
from utcompile.tuners import RECURRENT, edges

_CONVS = having(Trait.CONV)
_TRANSPOSED = having(Trait.CONV_TRANSPOSE)


def to_function(graph: fx.Graph, node: fx.Node, root: nn.Module) -> dict[str, fx.Node]:
    """Turn a call of a leaf module into a function call, in place.

    The node keeps its name, readers and meta; `info(node).module_call` remembers the module.

    Returns:
        The nodes that yield the leaf's parameters, by the parameters' names.

    Raises:
        UtcError: the module is called in a way that no function has.
    """
    leaf = root.get_submodule(str(node.target))
    beyond = more_than_its_class(leaf)
    if beyond is not None:
        raise UtcError(f"the weight of {describe(node)} cannot be tuned", why=f"it does more than its class: {beyond}")
    name, attributes = module_operation(leaf)
    (source, *more), path = node.args, str(node.target)
    if (more and name not in RECURRENT) or node.kwargs or not isinstance(source, fx.Node):
        raise UtcError(
            f"the weight of {describe(node)} cannot be tuned", why="the module is called with more than its input"
        )
    state: dict[str, fx.Node] = {}
    with graph.inserting_before(node):
        for key in [*leaf._parameters, *leaf._buffers]:
            if leaf._parameters.get(key) is not None or leaf._buffers.get(key) is not None:
                state[key] = graph.get_attr(f"{path}.{key}")
                inserted(state[key], info(node).origin, state=True)
        function, args, kwargs = _spelled(graph, leaf, name, attributes, source, state, more)
    node.op, node.target = "call_function", function
    node.args, node.kwargs = args, kwargs
    info(node).module_call = path
    return {k: v for k, v in state.items() if leaf._parameters.get(k) is not None}


def to_module(graph: fx.Graph, node: fx.Node) -> None:
    """Turn a function call that `to_function` made back into the call of its module, in place."""
    source, *_ = (n for n in node.all_input_nodes if info(n).role == Role.PADDING or value_of(n) is not None)
    hidden = node.args[2] if node.target in (recurrent, recurrent_cell) else None
    if info(source).role == Role.PADDING:
        source = source.all_input_nodes[0]
    node.op, node.target = "call_module", str(info(node).module_call)
    del info(node).module_call
    hidden = tuple(hidden) if isinstance(hidden, (list, tuple)) else hidden
    node.args, node.kwargs = (source,) if hidden is None else (source, hidden), {}


def _spelled(
    graph: fx.Graph, leaf: Any, name: str, a: dict[str, Any], x: fx.Node, state: dict[str, fx.Node], more: list[Any]
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    weight, bias = state.get("weight"), state.get("bias")
    if name == "linear":
        return F.linear, (x, weight, bias), {}
    if name in _CONVS:
        padding = a["padding"]
        if a["padding_mode"] != "zeros":
            sides = edges(padding, leaf.kernel_size, a["dilation"])
            padded = graph.call_function(F.pad, (x, sides), {"mode": a["padding_mode"]})
            inserted(padded, info(x).origin, role=Role.PADDING)
            x, padding = padded, 0
        return function_of(name), (x, weight, bias, a["stride"], padding, a["dilation"], a["groups"]), {}
    if name in _TRANSPOSED:
        rest = (a["stride"], a["padding"], a["output_padding"], a["groups"], a["dilation"])
        return function_of(name), (x, weight, bias, *rest), {}
    if name == "embedding":
        if leaf.max_norm is not None or leaf.scale_grad_by_freq or leaf.sparse:
            raise UtcError("an embedding with max_norm, scale_grad_by_freq or sparse gradients cannot be tuned")
        return F.embedding, (x, weight, a["padding_idx"]), {}
    if name == "layer_norm":
        return F.layer_norm, (x, a["normalized_shape"], weight, bias, a["eps"]), {}
    if name == "rms_norm":
        return F.rms_norm, (x, a["normalized_shape"], weight, a["eps"]), {}
    if name == "group_norm":
        return F.group_norm, (x, a["num_groups"], weight, bias, a["eps"]), {}
    if name in ("batch_norm", "instance_norm") and "running_mean" in state:
        statistics = (state["running_mean"], state["running_var"])
        return getattr(F, name), (x, *statistics, weight, bias, False, leaf.momentum or 0.0, a["eps"]), {}
    if name == "instance_norm":
        return F.instance_norm, (x, None, None, weight, bias, True, leaf.momentum or 0.0, a["eps"]), {}
    if name in ("lstm_cell", "gru_cell"):
        value = value_of(x)
        if value is None or value.rank != 2:
            raise UtcError(f"the weights of an {name} that reads one sample without a batch cannot be tuned")
        weights = [state.get(key) for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        return recurrent_cell, (name, x, more[0] if more else None, weights, leaf.hidden_size), {}
    if name in RECURRENT:
        value = value_of(x)
        if value is None or value.rank != 3:
            raise UtcError(f"the weights of an {name} that reads a sequence without a batch cannot be tuned")
        weights = [state[key] for key in leaf._flat_weights_names]
        shape = (leaf.bias, leaf.num_layers, leaf.bidirectional, leaf.batch_first)
        hidden = more[0] if more else None
        hidden = list(hidden) if isinstance(hidden, tuple) else hidden
        return recurrent, (name, x, hidden, weights, *shape, leaf.hidden_size, leaf.proj_size), {}
    raise UtcError(f"the weight of {type(leaf).__name__} cannot be tuned", why="it has no spelling as a function")


def recurrent(
    kind: str,
    x: torch.Tensor,
    hidden: Any,
    weights: Sequence[torch.Tensor],
    bias: bool,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
    hidden_size: int,
    proj_size: int,
) -> Any:
    """`nn.LSTM` or `nn.GRU` in eval, with its weights as an argument: `(y, (h, c))` or `(y, h)`."""
    batch = x.shape[0 if batch_first else 1]
    if hidden is None:
        count = layers * (2 if bidirectional else 1)
        zeros = x.new_zeros(count, batch, proj_size or hidden_size)
        hidden = [zeros, x.new_zeros(count, batch, hidden_size)] if kind == "lstm" else zeros
    # cuDNN knows a backward in training mode alone; the two modes differ in dropout, which is 0
    training = torch.is_grad_enabled()
    call: Any = torch.lstm if kind == "lstm" else torch.gru
    y, *state = call(x, hidden, list(weights), bias, layers, 0.0, training, bidirectional, batch_first)
    return y, (tuple(state) if kind == "lstm" else state[0])


def recurrent_cell(
    kind: str, x: torch.Tensor, hidden: Any, weights: Sequence[torch.Tensor | None], hidden_size: int
) -> Any:
    """`nn.LSTMCell` or `nn.GRUCell` with its weights as an argument: `(h, c)` or `h`."""
    if hidden is None:
        zeros = x.new_zeros(x.shape[0], hidden_size)
        hidden = (zeros, zeros) if kind == "lstm_cell" else zeros
    call: Any = torch.lstm_cell if kind == "lstm_cell" else torch.gru_cell
    return call(x, hidden, *weights)
