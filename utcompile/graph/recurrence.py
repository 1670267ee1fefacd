"""Recurrent layers in eval whose input has a gradient: cuDNN has a backward in training mode alone.

A frozen backbone stays in eval, so on CUDA nothing behind a tuner and through an LSTM would train. The layers here run
in the kernels' training mode where gradients are on, with a dropout of 0, which is all in which the two modes differ.
Nothing of the layer itself is changed, and on other devices it runs as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.fx.node import Target

K = TypeVar("K")


def needs_training_kernels(x: torch.Tensor) -> bool:
    """Whether a recurrent kernel on this input has a backward in training mode alone."""
    return x.is_cuda and torch.is_grad_enabled() and not torch.compiler.is_compiling()


class _Recurrent(nn.RNNBase):
    def forward(self, input: Any, hx: Any = None) -> Any:
        layer = self if self.training or not needs_training_kernels(_data(input)) else _training_twin(self)
        return super(_Recurrent, layer).forward(input, hx)


def _data(input: torch.Tensor | nn.utils.rnn.PackedSequence) -> torch.Tensor:
    return input.data if isinstance(input, nn.utils.rnn.PackedSequence) else input


def _training_twin(layer: _Recurrent) -> _Recurrent:
    """The same layer in another mode, for one call: other threads do not see it."""
    twin = object.__new__(type(layer))
    twin.__dict__.update(layer.__dict__, training=True, dropout=0.0)
    return twin


class TrainableRNN(_Recurrent, nn.RNN):
    """`nn.RNN` that has a backward in eval on CUDA."""


class TrainableLSTM(_Recurrent, nn.LSTM):
    """`nn.LSTM` that has a backward in eval on CUDA."""


class TrainableGRU(_Recurrent, nn.GRU):
    """`nn.GRU` that has a backward in eval on CUDA."""


def trainable_lstm(*args: object) -> object:
    """`torch.lstm` that has a backward in eval on CUDA."""
    return torch.lstm(*_trainable(args))


def trainable_gru(*args: object) -> object:
    """`torch.gru` that has a backward in eval on CUDA."""
    return torch.gru(*_trainable(args))


def trainable_rnn_tanh(*args: object) -> object:
    """`torch.rnn_tanh` that has a backward in eval on CUDA."""
    return torch.rnn_tanh(*_trainable(args))


def trainable_rnn_relu(*args: object) -> object:
    """`torch.rnn_relu` that has a backward in eval on CUDA."""
    return torch.rnn_relu(*_trainable(args))


def _trainable(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a call, with `dropout` and `train` changed where that is needed."""
    is_packed = isinstance(args[3], (list, tuple))  # (data, batch_sizes, hx, weights, …) and not (x, hx, weights, …)
    at = 6 if is_packed else 5
    if args[at + 1] or not needs_training_kernels(args[0]):
        return args
    return (*args[:at], 0.0, True, *args[at + 2 :])


_LAYERS: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.RNN: TrainableRNN,
    nn.LSTM: TrainableLSTM,
    nn.GRU: TrainableGRU,
}
_CALLS: Mapping[Target, Target] = {
    torch.lstm: trainable_lstm,
    torch.gru: trainable_gru,
    torch.rnn_tanh: trainable_rnn_tanh,
    torch.rnn_relu: trainable_rnn_relu,
}


def set_trainable_recurrence(root: nn.Module, graph: fx.Graph, trainable: bool) -> None:
    """Let recurrent layers of a copy of ours, and calls in its graph, have a backward in eval, or be as they were."""
    layers, calls = (_LAYERS, _CALLS) if trainable else (_inverse(_LAYERS), _inverse(_CALLS))
    for module in root.modules():
        if type(module) in layers:
            module.__class__ = layers[type(module)]
    for node in graph.nodes:
        if node.op == "call_function" and node.target in calls and not node.kwargs:
            node.target = calls[node.target]


def _inverse(table: Mapping[K, K]) -> dict[K, K]:
    return {ours: plain for plain, ours in table.items()}
