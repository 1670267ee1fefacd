"""A leaf module's call as a function call of the same numbers, with its parameters as arguments, and back again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.node import Argument, Target

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
# what the function of a layer is given, in order: its input, its state, its attributes
_SIGNATURES: Mapping[str, str] = {
    **dict.fromkeys(_CONVS, "input weight bias stride padding dilation groups"),
    **dict.fromkeys(having(Trait.CONV_TRANSPOSE), "input weight bias stride padding output_padding groups dilation"),
    "linear": "input weight bias",
    "embedding": "input weight padding_idx",
    "layer_norm": "input normalized_shape weight bias eps",
    "rms_norm": "input normalized_shape weight eps",
    "group_norm": "input num_groups weight bias eps",
    "batch_norm": "input running_mean running_var weight bias training momentum eps",
    "instance_norm": "input running_mean running_var weight bias use_input_stats momentum eps",
}


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
        function, args = _spelled(graph, leaf, name, {**attributes, **state, "input": source}, more)
    node.op, node.target = "call_function", function
    node.args, node.kwargs = args, {}
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
    graph: fx.Graph, leaf: nn.Module, name: str, given: dict[str, Argument], more: Sequence[Argument]
) -> tuple[Target, tuple[Argument, ...]]:
    """The function of a leaf's class, and its arguments.

    Args:
        given: the leaf's input, state and attributes, by the names in the function's signature.
        more: what the leaf is called with after its input.
    """
    if name in _RECURRENT:
        function, rest = _RECURRENT[name]
        return function, (name, given["input"], *rest(leaf, name, given, more))
    if name in _PREPARED:
        given = given | _PREPARED[name](graph, leaf, given)
    if name not in _SIGNATURES:
        raise UtcError(f"the weight of {type(leaf).__name__} cannot be tuned", why="it has no spelling as a function")
    return function_of(name), tuple(given.get(role) for role in _SIGNATURES[name].split())


def _conv(graph: fx.Graph, leaf: nn.Module, given: Mapping[str, Argument]) -> dict[str, Argument]:
    """A padding that is not of zeros comes before the convolution."""
    source = given["input"]
    assert isinstance(source, fx.Node) and isinstance(leaf, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    if given["padding_mode"] == "zeros":
        return {}
    sides = edges(leaf.padding, leaf.kernel_size, leaf.dilation)
    padded = graph.call_function(F.pad, (source, sides), {"mode": given["padding_mode"]})
    return {"input": inserted(padded, info(source).origin, role=Role.PADDING), "padding": 0}


def _embedding(graph: fx.Graph, leaf: nn.Module, given: Mapping[str, Argument]) -> dict[str, Argument]:
    if leaf.max_norm is not None or leaf.scale_grad_by_freq or leaf.sparse:
        raise UtcError("an embedding with max_norm, scale_grad_by_freq or sparse gradients cannot be tuned")
    return {}


def _statistics(graph: fx.Graph, leaf: nn.Module, given: Mapping[str, Argument]) -> dict[str, Argument]:
    """A norm in eval: by its own statistics, where it has any."""
    alone = "running_mean" not in given
    if alone and not isinstance(leaf, nn.modules.instancenorm._InstanceNorm):
        raise UtcError(f"the weight of {type(leaf).__name__} cannot be tuned", why="it has no statistics")
    momentum = leaf.momentum if isinstance(leaf.momentum, float) else 0.0
    return {"training": False, "use_input_stats": alone, "momentum": momentum}


def _cell(leaf: nn.Module, name: str, given: Mapping[str, Argument], more: Sequence[Argument]) -> tuple[Argument, ...]:
    _check_batch(given["input"], 2, f"an {name} that reads one sample")
    weights = [given.get(key) for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    return more[0] if more else None, weights, _number(leaf.hidden_size)


def _layers(
    leaf: nn.Module, name: str, given: Mapping[str, Argument], more: Sequence[Argument]
) -> tuple[Argument, ...]:
    assert isinstance(leaf, nn.RNNBase)
    _check_batch(given["input"], 3, f"an {name} that reads a sequence")
    weights = [given[key] for key in leaf._flat_weights_names]
    hidden = more[0] if more else None
    hidden = list(hidden) if isinstance(hidden, tuple) else hidden
    shape = (leaf.bias, leaf.num_layers, leaf.bidirectional, leaf.batch_first)
    return hidden, weights, *shape, leaf.hidden_size, leaf.proj_size


def _check_batch(source: Argument, rank: int, what: str) -> None:
    value = value_of(source) if isinstance(source, fx.Node) else None
    if value is None or value.rank != rank:
        raise UtcError(f"the weights of {what} without a batch cannot be tuned")


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value


Hidden = torch.Tensor | Sequence[torch.Tensor] | None
State = torch.Tensor | tuple[torch.Tensor, ...]


def recurrent(
    kind: str,
    x: torch.Tensor,
    hidden: Hidden,
    weights: Sequence[torch.Tensor],
    bias: bool,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
    hidden_size: int,
    proj_size: int,
) -> tuple[torch.Tensor, State]:
    """`nn.LSTM` or `nn.GRU` in eval, with its weights as an argument: `(y, (h, c))` or `(y, h)`."""
    batch = x.shape[0 if batch_first else 1]
    if hidden is None:
        count = layers * (2 if bidirectional else 1)
        zeros = x.new_zeros(count, batch, proj_size or hidden_size)
        hidden = [zeros, x.new_zeros(count, batch, hidden_size)] if kind == "lstm" else zeros
    # cuDNN knows a backward in training mode alone; the two modes differ in dropout, which is 0
    training = torch.is_grad_enabled()
    if isinstance(hidden, torch.Tensor):
        return torch.gru(x, hidden, list(weights), bias, layers, 0.0, training, bidirectional, batch_first)
    y, *state = torch.lstm(x, list(hidden), list(weights), bias, layers, 0.0, training, bidirectional, batch_first)
    return y, tuple(state)


def recurrent_cell(
    kind: str, x: torch.Tensor, hidden: Hidden, weights: Sequence[torch.Tensor | None], hidden_size: int
) -> State:
    """`nn.LSTMCell` or `nn.GRUCell` with its weights as an argument: `(h, c)` or `h`."""
    if hidden is None:
        zeros = x.new_zeros(x.shape[0], hidden_size)
        hidden = (zeros, zeros) if kind == "lstm_cell" else zeros
    of_inputs, of_state, *biases = weights
    assert of_inputs is not None and of_state is not None
    if isinstance(hidden, torch.Tensor):
        return torch.gru_cell(x, hidden, of_inputs, of_state, *biases)
    return torch.lstm_cell(x, list(hidden), of_inputs, of_state, *biases)


_PREPARED = {
    **dict.fromkeys(_CONVS, _conv),
    "embedding": _embedding,
    "batch_norm": _statistics,
    "instance_norm": _statistics,
}
_RECURRENT = {
    name: (recurrent_cell, _cell) if name.endswith("_cell") else (recurrent, _layers) for name in sorted(RECURRENT)
}
